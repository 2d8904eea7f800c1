package pods

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/cri"
)

func TestEvictedPodFailsWithoutGrace(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.runtime.Script = func(*runtimeapi.ContainerConfig) cri.Behaviour { return cri.Behaviour{Stubborn: true} }
		pod := c.apply("spec: {terminationGracePeriodSeconds: 600, containers: [{name: app}]}")
		c.manager.Evict(pod.UID, "The node was low on resource: memory.")
		c.manager.Evict(pod.UID, "again")
		sleep(3 * time.Second)
		c.wantStatus("Failed Evicted [DisruptionTarget Initialized]\napp: terminated 137 Error")
		if events := strings.Join(c.drainEvents(), "\n"); strings.Count(events, "Warning Evicted") != 1 {
			t.Errorf("events:\n%s", events)
		}
	})
}

func TestPodsThatANodeUnderPressureRefuses(t *testing.T) {
	pod := func(class corev1.PodQOSClass, change ...func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{Status: corev1.PodStatus{QOSClass: class}}
		for _, f := range change {
			f(p)
		}
		return p
	}
	tolerant := func(p *corev1.Pod) {
		p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists}}
	}
	critical := func(p *corev1.Pod) { p.Spec.Priority = new(int32(criticalSystem)) }
	for name, test := range map[string]struct {
		pod          *corev1.Pod
		memory, disk bool
		want         string
	}{
		"nobody without pressure":                {pod(corev1.PodQOSBestEffort), false, false, ""},
		"best effort when memory is short":       {pod(corev1.PodQOSBestEffort), true, false, "The node had condition: [MemoryPressure]. "},
		"not who asks for memory":                {pod(corev1.PodQOSBurstable), true, false, ""},
		"not who tolerates it":                   {pod(corev1.PodQOSBestEffort, tolerant), true, false, ""},
		"everybody when the disk is short":       {pod(corev1.PodQOSGuaranteed), false, true, "The node had condition: [DiskPressure]. "},
		"never what the system itself relies on": {pod(corev1.PodQOSBestEffort, critical), true, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if r := refusedUnderPressure(test.pod, func() (bool, bool) { return test.memory, test.disk }); r != nil {
				got = r.message
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
