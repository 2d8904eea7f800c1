package testcluster

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/controlplane/reconcile"
)

// Nodes plays scheduler and node agents: every pod is bound to the node that
// it asks for by name or node affinity, or to "node", is Ready after ready (never, if negative), and is
// gone after stop from its deletion; if a finalizer keeps it, it has Failed by then.
func (c *Cluster) Nodes(ready, stop time.Duration) {
	c.t.Helper()
	_, err := c.Informers.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			pod := obj.(*corev1.Pod)
			c.running.Go(func() { c.runPod(pod, ready) })
		},
		UpdateFunc: func(before, after any) {
			pod := after.(*corev1.Pod)
			if before.(*corev1.Pod).DeletionTimestamp == nil && pod.DeletionTimestamp != nil {
				c.running.Go(func() { c.stopPod(pod, stop) })
			}
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *Cluster) runPod(pod *corev1.Pod, ready time.Duration) {
	c.change(pod, func(p *corev1.Pod) {
		if p.Spec.NodeName == "" {
			p.Spec.NodeName = wantedNode(p)
		}
	})
	c.SetPhase(pod, corev1.PodRunning)
	broken := c.Broken != "" && len(pod.Spec.Containers) > 0 && pod.Spec.Containers[0].Image == c.Broken
	if !broken && ready >= 0 && c.wait(ready) {
		c.SetReady(pod, true)
	}
}

// wantedNode returns the one node that the pod's node affinity allows, else "node".
func wantedNode(pod *corev1.Pod) string {
	affinity := pod.Spec.Affinity
	if affinity == nil || affinity.NodeAffinity == nil || affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return "node"
	}
	for _, term := range affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, field := range term.MatchFields {
			if field.Key == metav1.ObjectNameField && len(field.Values) == 1 {
				return field.Values[0]
			}
		}
	}
	return "node"
}

func (c *Cluster) stopPod(pod *corev1.Pod, after time.Duration) {
	if c.wait(after) {
		if len(pod.Finalizers) > 0 && !reconcile.IsFinished(pod) { // else nobody would see it
			c.SetPhase(pod, corev1.PodFailed)
		}
		_ = c.Client.CoreV1().Pods(pod.Namespace).Delete(background, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	}
}

// wait reports false if the test ended first.
func (c *Cluster) wait(d time.Duration) bool {
	select {
	case <-time.After(d):
		return c.t.Context().Err() == nil
	case <-c.t.Context().Done():
		return false
	}
}

// SetReady writes the pod's Ready condition. A pod that has finished stays not
// ready, as node agents report it.
func (c *Cluster) SetReady(pod *corev1.Pod, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	c.changeStatus(pod, func(p *corev1.Pod) {
		if ready && reconcile.IsFinished(p) {
			return
		}
		p.Status.Conditions = slices.DeleteFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()})
	})
}

// SetPhase writes the pod's phase. A pod that has finished is not ready any
// more, as node agents report it.
func (c *Cluster) SetPhase(pod *corev1.Pod, phase corev1.PodPhase) {
	c.changeStatus(pod, func(p *corev1.Pod) {
		p.Status.Phase = phase
		for i := range p.Status.Conditions {
			if ready := &p.Status.Conditions[i]; ready.Type == corev1.PodReady && ready.Status == corev1.ConditionTrue && reconcile.IsFinished(p) {
				ready.Status, ready.LastTransitionTime = corev1.ConditionFalse, metav1.Now()
			}
		}
	})
}

// change edits a pod if it still exists.
func (c *Cluster) change(pod *corev1.Pod, edit func(*corev1.Pod)) {
	pods := c.Client.CoreV1().Pods(pod.Namespace)
	if live, err := pods.Get(background, pod.Name, metav1.GetOptions{}); err == nil && live.UID == pod.UID {
		edit(live)
		live.ResourceVersion = ""
		_, _ = pods.Update(background, live, metav1.UpdateOptions{})
	}
}

func (c *Cluster) changeStatus(pod *corev1.Pod, edit func(*corev1.Pod)) {
	pods := c.Client.CoreV1().Pods(pod.Namespace)
	if live, err := pods.Get(background, pod.Name, metav1.GetOptions{}); err == nil && live.UID == pod.UID {
		edit(live)
		live.ResourceVersion = ""
		_, _ = pods.UpdateStatus(background, live, metav1.UpdateOptions{})
	}
}
