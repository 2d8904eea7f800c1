package job

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestEachFailureInARowDoublesTheWait(t *testing.T) {
	var b backoff
	for i, want := range []time.Duration{0, 10, 20, 40, 80, 160, 320, 600, 600} {
		if got := b.wait(now); got != want*time.Second {
			t.Errorf("after %d failures: wait %s, want %s", i, got, want*time.Second)
		}
		b = b.with(nil, []*corev1.Pod{pod(fmt.Sprint(i), failedAgo(0))})
	}
}

func TestBackoff(t *testing.T) {
	success := func(ago time.Duration) *corev1.Pod { return pod("ok", exited(0, now.Add(-ago))) }
	cases := []struct {
		name  string
		start backoff
		ok    []*corev1.Pod
		bad   []*corev1.Pod
		want  time.Duration
	}{
		{name: "the wait is from the last failure", bad: []*corev1.Pod{pod("a", failedAgo(time.Hour)), pod("b", failedAgo(3*time.Second))}, want: 17 * time.Second},
		{name: "then there is none", bad: []*corev1.Pod{pod("a", failedAgo(11*time.Second))}},
		{name: "a success ends the row", ok: []*corev1.Pod{success(time.Second)}, bad: []*corev1.Pod{pod("a", failedAgo(2*time.Second))}},
		{name: "a failure after it begins a new one", ok: []*corev1.Pod{success(2 * time.Second)},
			bad: []*corev1.Pod{pod("a", failedAgo(3*time.Second)), pod("b", failedAgo(time.Second))}, want: 9 * time.Second},
		{name: "a pod that is known does not count twice", start: backoff{}.with(nil, []*corev1.Pod{pod("a", failedAgo(0))}),
			bad: []*corev1.Pod{pod("a", failedAgo(0))}, want: 10 * time.Second},
		{name: "a pod that is gone still counts", start: backoff{}.with(nil, []*corev1.Pod{pod("a", failedAgo(0))}),
			bad: []*corev1.Pod{pod("b", failedAgo(0))}, want: 20 * time.Second},
		{name: "a success that is known stays so", start: backoff{}.with([]*corev1.Pod{success(0)}, nil),
			bad: []*corev1.Pod{pod("a", failedAgo(time.Second))}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := c.start.with(c.ok, c.bad).wait(now); got != c.want {
				t.Errorf("wait %s, want %s", got, c.want)
			}
		})
	}
}

func TestFinishedAt(t *testing.T) {
	minute := func(m int) time.Time { return now.Add(time.Duration(m) * time.Minute) }
	unready := func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(minute(-4))}}
	}
	asked := func(p *corev1.Pod) {
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &metav1.Time{Time: minute(1)}, new(int64(180))
	}
	second := func(ended bool) podOption {
		return func(p *corev1.Pod) {
			other := corev1.ContainerStatus{Name: "other"}
			if ended {
				other.State.Terminated = &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(minute(-1))}
			}
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, other)
		}
	}
	sidecar := func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "setup"}, {Name: "proxy", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}}
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{
			{Name: "setup", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(minute(0))}}},
			{Name: "proxy", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(minute(-2))}}},
		}
	}
	cases := []struct {
		name string
		pod  *corev1.Pod
		want time.Time
	}{
		{"when the container ended", pod("p", exited(1, minute(-5))), minute(-5)},
		{"when the last container ended", pod("p", exited(1, minute(-5)), second(true)), minute(-1)},
		{"when the sidecar ended, not the init container", pod("p", exited(1, minute(-5)), sidecar), minute(-2)},
		{"when it ceased to be ready, if a container's end is not known", pod("p", exited(1, minute(-5)), second(false), unready), minute(-4)},
		{"when it was asked to end", pod("p", asked), minute(-2)},
		{"when it was created, if nothing else is known", pod("p"), minute(-60)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := finishedAt(c.pod); !got.Equal(c.want) {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}
