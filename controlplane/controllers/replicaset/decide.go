package replicaset

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"weft.dev/weft/controlplane/reconcile"
)

// burst is how many pods one step creates or deletes at most.
const burst = 500

// plan is what one step does for one set. At most one of Create and Delete is set.
type plan struct {
	Create int
	Delete []*corev1.Pod
	// Status holds the counts as they are before Create and Delete.
	Status appsv1.ReplicaSetStatus
	// Again is when the next ready pod becomes available; 0 if none will.
	Again time.Duration
}

// failureReason is the reason of the ReplicaFailure condition if the step fails.
func (p plan) failureReason() string {
	if p.Create > 0 {
		return reconcile.ReasonCreateFailed
	}
	return reconcile.ReasonDeleteFailed
}

// decide compares rs with its unfinished pods. siblings returns the pods of all
// sets with the same controller; they spread deletions over nodes.
func decide(rs *appsv1.ReplicaSet, pods []*corev1.Pod, siblings func() []*corev1.Pod, now time.Time) plan {
	var active, terminating []*corev1.Pod
	for _, pod := range pods {
		if reconcile.IsTerminating(pod) {
			terminating = append(terminating, pod)
		} else {
			active = append(active, pod)
		}
	}
	p := plan{}
	p.Status, p.Again = count(rs, active, len(terminating), now)
	if rs.DeletionTimestamp != nil {
		return p
	}
	if missing := int(*rs.Spec.Replicas) - len(active); missing > 0 {
		p.Create = min(missing, burst)
	} else if missing < 0 {
		p.Delete = surplus(active, siblings(), min(-missing, burst), now)
	}
	return p
}

// count returns the status, apart from a failure, and how long it takes until
// the next ready pod has been so for minReadySeconds.
func count(rs *appsv1.ReplicaSet, active []*corev1.Pod, terminating int, now time.Time) (appsv1.ReplicaSetStatus, time.Duration) {
	var again time.Duration
	status := appsv1.ReplicaSetStatus{
		Replicas:            int32(len(active)),
		TerminatingReplicas: new(int32(terminating)),
		ObservedGeneration:  rs.Generation,
		Conditions:          rs.Status.Conditions,
	}
	template := labels.SelectorFromSet(rs.Spec.Template.Labels)
	for _, pod := range active {
		if template.Matches(labels.Set(pod.Labels)) {
			status.FullyLabeledReplicas++
		}
		if !reconcile.IsReady(pod) {
			continue
		}
		status.ReadyReplicas++
		available, after := reconcile.IsAvailable(pod, rs.Spec.MinReadySeconds, now)
		if available {
			status.AvailableReplicas++
		} else if again == 0 || after < again {
			again = after
		}
	}
	return status, again
}

// withFailure sets the ReplicaFailure condition to err, or removes it. A
// failure that stands already keeps its time and message.
func withFailure(status appsv1.ReplicaSetStatus, reason string, err error, now time.Time) appsv1.ReplicaSetStatus {
	isFailure := func(c appsv1.ReplicaSetCondition) bool { return c.Type == appsv1.ReplicaSetReplicaFailure }
	switch stands := slices.ContainsFunc(status.Conditions, isFailure); {
	case err == nil && stands:
		status.Conditions = slices.DeleteFunc(slices.Clone(status.Conditions), isFailure)
	case err != nil && !stands:
		status.Conditions = append(slices.Clone(status.Conditions), appsv1.ReplicaSetCondition{
			Type:               appsv1.ReplicaSetReplicaFailure,
			Status:             corev1.ConditionTrue,
			LastTransitionTime: metav1.Time{Time: now},
			Reason:             reason,
			Message:            err.Error(),
		})
	}
	return status
}

// newsOf says whether rs's new status may wait for others to share its write.
// It must not when the set has become what its spec asks for, or is so no
// longer, or has failed, or has recovered. How many of its pods still terminate
// is never urgent.
func newsOf(rs *appsv1.ReplicaSet, status appsv1.ReplicaSetStatus) reconcile.News {
	old, want := rs.Status, *rs.Spec.Replicas
	atGoal := func(s appsv1.ReplicaSetStatus) bool {
		return s.Replicas == want && s.ReadyReplicas == want && s.AvailableReplicas == want
	}
	isCounted := status.Replicas != old.Replicas || status.ReadyReplicas != old.ReadyReplicas ||
		status.AvailableReplicas != old.AvailableReplicas || status.ObservedGeneration != old.ObservedGeneration
	switch {
	case equality.Semantic.DeepEqual(old, status):
		return reconcile.NoNews
	case !equality.Semantic.DeepEqual(old.Conditions, status.Conditions), isCounted && (atGoal(status) || atGoal(old)):
		return reconcile.Urgent
	}
	return reconcile.Counts
}
