package pods

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const burstablePod = `
spec:
  containers:
  - name: app
    resources: {requests: {cpu: 100m, memory: 100Mi}, limits: {cpu: 200m, memory: 200Mi}}
status: {qosClass: Burstable}`

// resize asks for other resources of the container app, as /resize does.
func (c *cluster) resize(requests, limits string) {
	c.t.Helper()
	c.change(func(pod *corev1.Pod) {
		pod.Generation++
		pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: resourceList(c.t, requests), Limits: resourceList(c.t, limits)}
	})
}

// resourceList reads "cpu/memory", each may be empty.
func resourceList(t *testing.T, text string) corev1.ResourceList {
	t.Helper()
	cpu, memory, _ := strings.Cut(text, "/")
	list := corev1.ResourceList{}
	for name, value := range map[corev1.ResourceName]string{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory} {
		if value != "" {
			list[name] = resource.MustParse(value)
		}
	}
	return list
}

// wantResize compares what the container has in the runtime and what the
// status says: "container ID, limits; allocated; resources; conditions".
func (c *cluster) wantResize(when, want string) {
	c.t.Helper()
	pod := c.get()
	status := pod.Status.ContainerStatuses[0]
	id := trimContainerID(status.ContainerID)
	running, err := c.runtime.ContainerStatus(c.t.Context(), id)
	if err != nil {
		c.t.Fatal(err)
	}
	text := func(l corev1.ResourceList) string { return l.Cpu().String() + "/" + l.Memory().String() }
	got := fmt.Sprintf("#%d %s; %s; %s-%s;", status.RestartCount, printLimits(running.Resources.Linux),
		text(status.AllocatedResources), text(status.Resources.Requests), text(status.Resources.Limits))
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodResizePending || condition.Type == corev1.PodResizeInProgress {
			got += fmt.Sprintf(" %s %s", condition.Type, condition.Reason)
		}
	}
	if got != want {
		c.t.Errorf("%s:\n%s, want\n%s", when, got, want)
	}
	if pod.Status.ObservedGeneration != pod.Generation {
		c.t.Errorf("%s: observed generation %d of %d", when, pod.Status.ObservedGeneration, pod.Generation)
	}
}

func TestResizeChangesARunningContainer(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(burstablePod)
		c.wantResize("at first", "#0 102/20000/200Mi; 100m/100Mi; 100m/100Mi-200m/200Mi;")
		c.resize("200m/200Mi", "400m/400Mi")
		c.wantResize("raised", "#0 204/40000/400Mi; 200m/200Mi; 200m/200Mi-400m/400Mi;")
		c.wantEvent("Normal ResizeCompleted")
		c.resize("50m/50Mi", "100m/50Mi")
		c.wantResize("lowered", "#0 51/10000/50Mi; 50m/50Mi; 50m/50Mi-100m/50Mi;")
		c.resize("50m/50Mi", "")
		c.wantResize("without limits", "#0 51/0/0Mi; 50m/50Mi; 50m/50Mi-0/0;")
		want := "102/20000/200Mi, " + // made
			"204/40000/400Mi, " + // widened, then the container raised
			"51/10000/50Mi, " + // the container lowered, then narrowed
			"51/0/0Mi"
		if got := c.cgroups.history(); got != want {
			t.Errorf("the pod's cgroup had %s, want %s", got, want)
		}
	})
}

func TestResizeThatOnlyTheAPISeesIsAcknowledged(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(burstablePod)
		c.resize("100m/150Mi", "200m/200Mi") // the kernel does not know memory requests
		c.wantResize("after", "#0 102/20000/200Mi; 100m/150Mi; 100m/150Mi-200m/200Mi;")
	})
}

func TestResizeRestartsContainersThatAskForIt(t *testing.T) {
	for name, test := range map[string]struct{ requests, limits, want string }{
		"for a memory limit":        {"100m/100Mi", "200m/300Mi", "#1 102/20000/300Mi; 100m/100Mi; 100m/100Mi-200m/300Mi;"},
		"for a memory request":      {"100m/150Mi", "200m/200Mi", "#1 102/20000/200Mi; 100m/150Mi; 100m/150Mi-200m/200Mi;"},
		"not for the CPU":           {"200m/100Mi", "400m/200Mi", "#0 204/40000/200Mi; 200m/100Mi; 200m/100Mi-400m/200Mi;"},
		"for both, with it changed": {"200m/100Mi", "400m/300Mi", "#1 204/40000/300Mi; 200m/100Mi; 200m/100Mi-400m/300Mi;"},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				c.apply(strings.Replace(burstablePod, "    resources:", "    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]\n    resources:", 1))
				c.resize(test.requests, test.limits)
				c.wantResize("after", test.want)
			})
		})
	}
}

func TestResizeWaitsForRoom(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(burstablePod)
		c.apply(`
metadata: {name: other}
spec: {containers: [{name: app, resources: {requests: {cpu: 1500m}}}]}
status: {qosClass: Burstable}`)
		c.resize("1/100Mi", "1/200Mi") // the node has 2
		before := "#0 102/20000/200Mi; 100m/100Mi; 100m/100Mi-200m/200Mi; PodResizePending Deferred"
		c.wantResize("beside another pod", before)
		c.wantEvent("Warning ResizeDeferred Pod resize Deferred: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000")
		c.stop()
		c.start()
		c.wantResize("after a restart", before)
		if err := c.client.CoreV1().Pods("default").Delete(t.Context(), "other", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		sleep(10 * time.Second)
		c.wantResize("alone", "#0 1024/100000/200Mi; 1/100Mi; 1/100Mi-1/200Mi;")
	})
}

func TestResizeBeyondTheNodeIsInfeasible(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(burstablePod)
		c.resize("3/100Mi", "3/200Mi")
		c.wantResize("asked for", "#0 102/20000/200Mi; 100m/100Mi; 100m/100Mi-200m/200Mi; PodResizePending Infeasible")
		c.wantEvent("Warning ResizeInfeasible Pod resize Infeasible: Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000")
		c.resize("100m/100Mi", "200m/200Mi")
		c.wantResize("taken back", "#0 102/20000/200Mi; 100m/100Mi; 100m/100Mi-200m/200Mi;")
	})
}

func TestMemoryInUseIsNotTakenAway(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.runtime.Usage = map[string]uint64{"app": 150 << 20}
		c.apply(burstablePod)
		c.resize("100m/100Mi", "200m/120Mi")
		c.wantResize("while it is in use", "#0 102/20000/200Mi; 100m/100Mi; 100m/100Mi-200m/200Mi; PodResizeInProgress Error")
		c.wantEvent("Warning ResizeError Pod resize error: container app: the new memory limit of 125829120 is below its current usage of 157286400")
		c.runtime.SetUsage("app", 100<<20)
		sleep(time.Minute)
		c.wantResize("when it is free", "#0 102/20000/120Mi; 100m/100Mi; 100m/100Mi-200m/120Mi;")
		c.wantEvent("Normal ResizeCompleted")
	})
}

func TestResizeCutShortIsFinishedByTheNextAgent(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(burstablePod)
		c.stop()
		c.resize("200m/200Mi", "400m/400Mi")
		c.start()
		c.wantResize("after a restart", "#0 204/40000/400Mi; 200m/200Mi; 200m/200Mi-400m/400Mi;")
	})
}

func TestPodLevelResourcesAreResized(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(`
spec:
  resources: {requests: {cpu: 100m, memory: 100Mi}, limits: {cpu: 200m, memory: 200Mi}}
  containers: [{name: app}]
status: {qosClass: Burstable}`)
		c.change(func(pod *corev1.Pod) {
			pod.Generation++
			pod.Spec.Resources = &corev1.ResourceRequirements{Requests: resourceList(t, "200m/200Mi"), Limits: resourceList(t, "400m/400Mi")}
		})
		s := c.get().Status
		if cpu, limit := s.AllocatedResources.Cpu().String(), s.Resources.Limits.Memory().String(); cpu != "200m" || limit != "400Mi" {
			t.Errorf("the status says %s, %s", cpu, limit)
		}
		if got, want := c.cgroups.history(), "102/20000/200Mi, 204/40000/400Mi"; got != want {
			t.Errorf("the pod's cgroup had %s, want %s", got, want)
		}
	})
}

func TestResourcesThatARuntimeDoesNotTellAreLeftAlone(t *testing.T) {
	f := situation{pod: burstablePod, containers: []container{{id: "c0", name: "app", state: stateRunning}}}.facts(t)
	if p := decide(f); len(p.resize) > 0 || len(p.kill) > 0 {
		t.Errorf("plan: %s", p.print())
	}
}

func TestSidecarsAndInitContainersThatRunAreResized(t *testing.T) {
	f := situation{pod: `
spec:
  initContainers:
  - {name: side, restartPolicy: Always, resources: {limits: {memory: 100Mi}}}
  - {name: init, resources: {limits: {memory: 100Mi}}}
  containers: [{name: app}]
status: {qosClass: Burstable}`,
		containers: []container{{id: "c0", name: "side", state: stateRunning}, {id: "c1", name: "init", state: stateRunning}},
	}.facts(t)
	for _, list := range f.observed.containers {
		list[0].resources = containerResources(podFrom(t, burstablePod), &corev1.Container{}, 0)
	}
	var names []string
	for _, r := range decide(f).resize {
		names = append(names, r.name)
	}
	if slices.Sort(names); !slices.Equal(names, []string{"init", "side"}) {
		t.Errorf("resized: %v", names)
	}
}
