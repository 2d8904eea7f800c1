package replicaset

import (
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/controlplane/reconcile"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func replicas(n int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "web-uid", Generation: 3},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &n,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}},
		},
	}
}

type option func(*corev1.Pod)

// pod is running and ready on node "n", for an hour, unless options say otherwise.
func pod(name string, options ...option) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: name, UID: types.UID(name),
			Labels:            map[string]string{"app": "web"},
			CreationTimestamp: metav1.NewTime(now.Add(-time.Hour)),
		},
		Spec:   corev1.PodSpec{NodeName: "n"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	readyFor(time.Hour)(p)
	for _, o := range options {
		o(p)
	}
	return p
}

func onNode(name string) option          { return func(p *corev1.Pod) { p.Spec.NodeName = name } }
func phase(phase corev1.PodPhase) option { return func(p *corev1.Pod) { p.Status.Phase = phase } }
func unready(p *corev1.Pod)              { p.Status.Conditions = nil }
func terminating(p *corev1.Pod)          { p.DeletionTimestamp = &metav1.Time{Time: now} }
func age(d time.Duration) option {
	return func(p *corev1.Pod) { p.CreationTimestamp.Time = now.Add(-d) }
}
func cost(value string) option {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: value} }
}
func restarts(n int32) option {
	return func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: n}} }
}
func sidecarRestarts(n int32) option {
	return func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "sidecar", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}}
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "sidecar", RestartCount: n}}
	}
}
func readyFor(d time.Duration) option {
	return func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-d)),
		}}
	}
}

func pods(n int) []*corev1.Pod {
	var list []*corev1.Pod
	for i := range n {
		list = append(list, pod(fmt.Sprintf("p%03d", i)))
	}
	return list
}

func TestDecide(t *testing.T) {
	deleted := replicas(3)
	deleted.DeletionTimestamp = &metav1.Time{Time: now}
	cases := []struct {
		name           string
		rs             *appsv1.ReplicaSet
		pods           []*corev1.Pod
		create, delete int
	}{
		{"creates what is missing", replicas(3), pods(1), 2, 0},
		{"deletes what is too much", replicas(1), pods(4), 0, 3},
		{"does nothing when the number is right", replicas(2), pods(2), 0, 0},
		{"creates at most a burst at a time", replicas(2000), nil, burst, 0},
		{"deletes at most a burst at a time", replicas(0), pods(burst + 7), 0, burst},
		{"replaces a terminating pod at once", replicas(2), []*corev1.Pod{pod("a"), pod("b", terminating)}, 1, 0},
		{"does not delete again what is terminating", replicas(1), []*corev1.Pod{pod("a"), pod("b", terminating)}, 0, 0},
		{"leaves pods alone while it is being deleted", deleted, pods(1), 0, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := decide(c.rs, c.pods, func() []*corev1.Pod { return c.pods }, now)
			if p.Create != c.create || len(p.Delete) != c.delete {
				t.Errorf("create %d, delete %d; want %d, %d", p.Create, len(p.Delete), c.create, c.delete)
			}
		})
	}
}

func TestStatusCountsPods(t *testing.T) {
	rs := replicas(9)
	rs.Spec.MinReadySeconds = 10
	rs.Spec.Template.Labels["tier"] = "front"
	full := pod("full")
	full.Labels["tier"] = "front"
	p := decide(rs, []*corev1.Pod{
		full,
		pod("starting", unready),
		pod("fresh", readyFor(4*time.Second)),
		pod("almost", readyFor(9*time.Second)),
		pod("leaving", terminating),
	}, nil, now)
	want := "4 replicas, 1 fully labelled, 3 ready, 1 available, 1 terminating, generation 3"
	got := fmt.Sprintf("%d replicas, %d fully labelled, %d ready, %d available, %d terminating, generation %d",
		p.Status.Replicas, p.Status.FullyLabeledReplicas, p.Status.ReadyReplicas, p.Status.AvailableReplicas, *p.Status.TerminatingReplicas, p.Status.ObservedGeneration)
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if p.Again != time.Second {
		t.Errorf("looks again after %v, want exactly when the next pod becomes available: 1s", p.Again)
	}
}

func TestSurplusOrder(t *testing.T) {
	cases := []struct {
		name        string
		first, then *corev1.Pod
	}{
		{"a pod without a node goes before one that runs", pod("z", onNode(""), age(2*time.Hour)), pod("a", unready)},
		{"a pending pod goes before one of unknown phase", pod("z", phase(corev1.PodPending)), pod("a", phase(corev1.PodUnknown))},
		{"a pod of unknown phase goes before a running one", pod("z", phase(corev1.PodUnknown)), pod("a", phase(corev1.PodRunning))},
		{"an unready pod goes before a ready one, whatever the cost", pod("z", unready, cost("100")), pod("a", cost("-100"))},
		{"a cheap pod goes before a dear one", pod("z", cost("-5")), pod("a", restarts(9))},
		{"a cost that is no number counts as none", pod("z", cost("-1")), pod("a", cost("cheap"))},
		{"a pod with neighbours goes before a lonely one", pod("z", onNode("crowded")), pod("a", onNode("lonely"), readyFor(time.Second))},
		{"a pod that became ready recently goes before an old hand", pod("z", readyFor(time.Minute)), pod("a", readyFor(time.Hour), restarts(5))},
		{"among pods ready for about as long, the restarted one goes", pod("z", readyFor(60*time.Minute), restarts(1)), pod("a", readyFor(59*time.Minute))},
		{"among pods with equal restarts, the restarted sidecar goes", pod("z", sidecarRestarts(2)), pod("a", sidecarRestarts(1))},
		{"a young pod goes before an old one", pod("z", age(time.Minute)), pod("a", age(time.Hour))},
		{"pods of about the same age go by UID", pod("a", age(59*time.Minute)), pod("z", age(60*time.Minute))},
	}
	crowd := []*corev1.Pod{pod("s1", onNode("crowded")), pod("s2", onNode("crowded")), pod("s3", onNode("lonely")), pod("s4", onNode("lonely"), terminating), pod("s5", onNode("lonely"), terminating)}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, order := range [][]*corev1.Pod{{c.first, c.then}, {c.then, c.first}} {
				if got := surplus(order, crowd, 1, now); got[0] != c.first {
					t.Errorf("picked %s", got[0].Name)
				}
			}
		})
	}
}

func TestFailureConditionStandsUntilAStepSucceeds(t *testing.T) {
	failed := withFailure(appsv1.ReplicaSetStatus{}, reconcile.ReasonCreateFailed, errors.New("quota exceeded"), now)
	again := withFailure(failed, reconcile.ReasonCreateFailed, errors.New("quota still exceeded"), now.Add(time.Hour))
	if len(again.Conditions) != 1 || again.Conditions[0].Message != "quota exceeded" || !again.Conditions[0].LastTransitionTime.Time.Equal(now) {
		t.Errorf("condition changed although nothing did: %+v", again.Conditions)
	}
	if well := withFailure(again, "", nil, now); len(well.Conditions) != 0 {
		t.Errorf("condition outlived the failure: %+v", well.Conditions)
	}
}

func TestWhatIsWrittenWithoutDelay(t *testing.T) {
	status := func(replicas, ready, available, terminating int32, generation int64) appsv1.ReplicaSetStatus {
		return appsv1.ReplicaSetStatus{Replicas: replicas, ReadyReplicas: ready, AvailableReplicas: available, TerminatingReplicas: &terminating, ObservedGeneration: generation}
	}
	failed := status(1, 1, 1, 0, 2)
	failed.Conditions = []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: "True"}}
	cases := []struct {
		name     string
		old, new appsv1.ReplicaSetStatus
		want     bool
	}{
		{"the last of three pods becomes available", status(3, 3, 2, 0, 2), status(3, 3, 3, 0, 2), true},
		{"the second of three pods becomes ready", status(3, 1, 1, 0, 2), status(3, 2, 2, 0, 2), false},
		{"a pod is made", status(1, 0, 0, 0, 2), status(2, 0, 0, 0, 2), false},
		{"the set is smaller as asked, while a pod terminates", status(4, 4, 4, 0, 2), status(3, 3, 3, 1, 2), true},
		{"a pod has ended at last", status(3, 3, 3, 1, 2), status(3, 3, 3, 0, 2), false},
		{"a new spec is seen, and fulfilled already", status(3, 3, 3, 0, 1), status(3, 3, 3, 0, 2), true},
		{"pods cannot be made", status(1, 1, 1, 0, 2), failed, true},
		{"one of three pods is no longer ready", status(3, 3, 3, 0, 2), status(3, 2, 2, 0, 2), true},
		{"one of three pods is gone", status(3, 3, 3, 0, 2), status(2, 2, 2, 0, 2), true},
		{"the set is to be larger, and begins to be", status(2, 2, 2, 0, 1), status(3, 2, 2, 0, 2), false},
		{"pods can be made again", failed, status(2, 1, 1, 0, 2), true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			rs := &appsv1.ReplicaSet{Spec: appsv1.ReplicaSetSpec{Replicas: new(int32(3))}, Status: c.old}
			if got := newsOf(rs, c.new); (got == reconcile.Urgent) != c.want {
				t.Errorf("news: %v", got)
			}
		})
	}
}
