package daemonset

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// agent is a DaemonSet as the API server would return it, with the template v1
// and one node unavailable at a time.
func agent() *appsv1.DaemonSet {
	labels := map[string]string{"app": "agent"}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "agent", UID: "agent-uid", Generation: 3},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}},
			},
			UpdateStrategy:       rolling("0", "1"),
			RevisionHistoryLimit: new(int32(10)),
		},
	}
}

func rolling(surge, unavailable string) appsv1.DaemonSetUpdateStrategy {
	return appsv1.DaemonSetUpdateStrategy{
		Type: appsv1.RollingUpdateDaemonSetStrategyType,
		RollingUpdate: &appsv1.RollingUpdateDaemonSet{
			MaxSurge:       new(intstr.Parse(surge)),
			MaxUnavailable: new(intstr.Parse(unavailable)),
		},
	}
}

func onDelete() appsv1.DaemonSetUpdateStrategy {
	return appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
}

// with returns an edited agent.
func with(edits ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	ds := agent()
	for _, edit := range edits {
		edit(ds)
	}
	return ds
}

func strategy(s appsv1.DaemonSetUpdateStrategy) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) { ds.Spec.UpdateStrategy = s }
}

func image(name string) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = name }
}

func minReady(seconds int32) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) { ds.Spec.MinReadySeconds = seconds }
}

// machine is a node without labels.
func machine(name string, taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}},
		Spec:       corev1.NodeSpec{Taints: taints},
	}
}

func machines(n int) []*corev1.Node {
	var all []*corev1.Node
	for i := range n {
		all = append(all, machine(fmt.Sprint("n", i)))
	}
	return all
}

func labelled(node *corev1.Node, key, value string) *corev1.Node {
	node.Labels[key] = value
	return node
}

func taint(key string, effect corev1.TaintEffect) corev1.Taint {
	return corev1.Taint{Key: key, Effect: effect}
}

// hashes are those of the templates v1 and v2.
var hashes = map[string]string{
	"v1": historyOf(with(image("v1")), nil).Current.Labels[appsv1.DefaultDaemonSetUniqueLabelKey],
	"v2": historyOf(with(image("v2")), nil).Current.Labels[appsv1.DefaultDaemonSetUniqueLabelKey],
}

type option func(*corev1.Pod)

// pod is a running, ready pod of template v1 on node, unless options say otherwise.
func pod(name, node string, options ...option) *corev1.Pod {
	p := newPod(agent(), node, hashes["v1"])
	p.Name, p.UID, p.CreationTimestamp = name, types.UID(name), metav1.NewTime(now.Add(-time.Hour))
	p.Spec.NodeName = node
	p.Status.Phase = corev1.PodRunning
	readyFor(time.Hour)(p)
	for _, o := range options {
		o(p)
	}
	return p
}

func unready(p *corev1.Pod)     { p.Status.Conditions = nil }
func terminating(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: now} }
func failed(p *corev1.Pod)      { p.Status.Phase = corev1.PodFailed; unready(p) }
func succeeded(p *corev1.Pod)   { p.Status.Phase = corev1.PodSucceeded; unready(p) }
func unbound(p *corev1.Pod) {
	p.Spec.NodeName = ""
	p.Status = corev1.PodStatus{Phase: corev1.PodPending}
}
func v2(p *corev1.Pod) { p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hashes["v2"] }

func age(d time.Duration) option {
	return func(p *corev1.Pod) { p.CreationTimestamp.Time = now.Add(-d) }
}

func readyFor(d time.Duration) option {
	return func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-d)),
		}}
	}
}
