package deployment

import (
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"weft.dev/weft/controlplane/reconcile"
)

// Reasons of conditions, as upstream spells them: kubectl decides by some.
const (
	reasonAvailable      = "MinimumReplicasAvailable"
	reasonUnavailable    = "MinimumReplicasUnavailable"
	reasonSetCreated     = "NewReplicaSetCreated"
	reasonSetCreateError = "ReplicaSetCreateError"
	reasonSetFound       = "FoundNewReplicaSet"
	reasonSetUpdated     = "ReplicaSetUpdated"
	reasonSetAvailable   = "NewReplicaSetAvailable"
	reasonTimedOut       = "ProgressDeadlineExceeded"
	reasonPaused         = "DeploymentPaused"
	reasonResumed        = "DeploymentResumed"
)

// counts returns the status with everything but changed conditions.
func (r *rollout) counts() appsv1.DeploymentStatus {
	status := appsv1.DeploymentStatus{
		ObservedGeneration: r.d.Generation,
		CollisionCount:     r.d.Status.CollisionCount,
		Conditions:         r.d.Status.Conditions,
	}
	var terminating int32
	known := true
	for _, set := range r.all() {
		status.Replicas += set.Status.Replicas
		status.ReadyReplicas += set.Status.ReadyReplicas
		status.AvailableReplicas += set.Status.AvailableReplicas
		if n := set.Status.TerminatingReplicas; n != nil {
			terminating += *n
		} else if set.Status.ObservedGeneration > 0 {
			known = false
		}
	}
	if r.newest != nil {
		status.UpdatedReplicas = r.newest.Status.Replicas
	}
	status.UnavailableReplicas = max(size(r.all())-status.AvailableReplicas, 0)
	if known {
		status.TerminatingReplicas = &terminating
	}
	return status
}

// isComplete reports whether every pod is of the new set and available.
func isComplete(d *appsv1.Deployment, status appsv1.DeploymentStatus) bool {
	want := *d.Spec.Replicas
	return status.UpdatedReplicas == want && status.Replicas == want && status.AvailableReplicas == want &&
		status.ObservedGeneration >= d.Generation
}

// newsOf says whether d's new status may wait for others to share its write.
// It must not when a rollout begins or is complete, or is so no longer, when a
// condition has become true or false, or when the next attempt to make a set
// depends on it. How many pods still terminate is never urgent.
func newsOf(d *appsv1.Deployment, status appsv1.DeploymentStatus) reconcile.News {
	old := d.Status
	isCounted := status.Replicas != old.Replicas || status.UpdatedReplicas != old.UpdatedReplicas ||
		status.AvailableReplicas != old.AvailableReplicas || status.ObservedGeneration != old.ObservedGeneration
	switch {
	case equality.Semantic.DeepEqual(old, status):
		return reconcile.NoNews
	case !ptr.Equal(old.CollisionCount, status.CollisionCount), !equalStatuses(old.Conditions, status.Conditions), begins(old, status),
		isCounted && (isComplete(d, status) || isComplete(d, old)):
		return reconcile.Urgent
	}
	return reconcile.Counts
}

// begins reports whether status is the first of a rollout. Once the rollout is
// complete, nothing tells it from the one before but what was written at its begin.
func begins(old, status appsv1.DeploymentStatus) bool {
	was, is := find(old.Conditions, appsv1.DeploymentProgressing), find(status.Conditions, appsv1.DeploymentProgressing)
	return was != nil && is != nil && *was != *is && (was.Reason == reasonSetAvailable || is.Reason == reasonSetCreated)
}

// equalStatuses reports whether the same conditions are true in a and b.
func equalStatuses(a, b []appsv1.DeploymentCondition) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(c appsv1.DeploymentCondition) bool {
		other := find(b, c.Type)
		return other == nil || other.Status != c.Status
	})
}

// hasDeadline reports whether lack of progress is an error.
func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

func deadline(d *appsv1.Deployment) time.Duration {
	return time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second
}

// withPause notes a pause or its end. The end starts the deadline's clock anew.
// A deadline that was missed before stays on record.
func withPause(d *appsv1.Deployment, now time.Time) appsv1.DeploymentStatus {
	status := d.Status
	progress := find(status.Conditions, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || progress != nil && progress.Reason == reasonTimedOut {
		return status
	}
	wasPaused := progress != nil && progress.Reason == reasonPaused
	switch {
	case d.Spec.Paused && !wasPaused:
		status.Conditions = with(status.Conditions, appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonPaused, "Deployment is paused", now)
	case !d.Spec.Paused && wasPaused:
		status.Conditions = with(status.Conditions, appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonResumed, "Deployment is resumed", now)
	}
	return status
}

// withFoundSet starts the deadline's clock for a set that was there before.
func withFoundSet(d *appsv1.Deployment, status appsv1.DeploymentStatus, set *appsv1.ReplicaSet, now time.Time) appsv1.DeploymentStatus {
	if hasDeadline(d) && find(status.Conditions, appsv1.DeploymentProgressing) == nil {
		message := fmt.Sprintf("Found new replica set %q", set.Name)
		status.Conditions = with(status.Conditions, appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetFound, message, now)
	}
	return status
}

// withCreateFailure is d's status when its new set could not be created.
func withCreateFailure(d *appsv1.Deployment, message string, now time.Time) appsv1.DeploymentStatus {
	status := d.Status
	if hasDeadline(d) {
		status.Conditions = with(status.Conditions, appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonSetCreateError, message, now)
	}
	return status
}

func withAvailability(conditions []appsv1.DeploymentCondition, status appsv1.DeploymentStatus, d *appsv1.Deployment, now time.Time) []appsv1.DeploymentCondition {
	if status.AvailableReplicas >= *d.Spec.Replicas-limitsOf(d).unavailable {
		return with(conditions, appsv1.DeploymentAvailable, corev1.ConditionTrue, reasonAvailable, "Deployment has minimum availability.", now)
	}
	return with(conditions, appsv1.DeploymentAvailable, corev1.ConditionFalse, reasonUnavailable, "Deployment does not have minimum availability.", now)
}

// withProgress judges the rollout by comparing status with the one before.
func (r *rollout) withProgress(status appsv1.DeploymentStatus) appsv1.DeploymentStatus {
	status.Conditions = r.progress(status)
	if failure := r.failure(); failure != nil {
		status.Conditions = without(status.Conditions, appsv1.DeploymentReplicaFailure)
		status.Conditions = append(status.Conditions, *failure)
	} else {
		status.Conditions = without(status.Conditions, appsv1.DeploymentReplicaFailure)
	}
	return status
}

func (r *rollout) progress(status appsv1.DeploymentStatus) []appsv1.DeploymentCondition {
	conditions := status.Conditions
	if !hasDeadline(r.d) {
		return without(conditions, appsv1.DeploymentProgressing)
	}
	subject := fmt.Sprintf("Deployment %q", r.d.Name)
	if r.newest != nil {
		subject = fmt.Sprintf("ReplicaSet %q", r.newest.Name)
	}
	if r.plan.Create != nil {
		conditions = replace(conditions, appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetCreated, fmt.Sprintf("Created new replica set %q", r.newest.Name), r.now)
	}
	current := find(conditions, appsv1.DeploymentProgressing)
	wasComplete := current != nil && current.Reason == reasonSetAvailable && status.Replicas == status.UpdatedReplicas
	switch {
	case wasComplete:
		return conditions
	case isComplete(r.d, status):
		return with(conditions, appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetAvailable, subject+" has successfully progressed.", r.now)
	case hasProgressed(r.d.Status, status):
		// The same reason again must still move lastUpdateTime.
		return replace(conditions, appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetUpdated, subject+" is progressing.", r.now)
	case r.hasTimedOut(current):
		return with(conditions, appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonTimedOut, subject+" has timed out progressing.", r.now)
	}
	return conditions
}

// hasProgressed reports whether pods were added to the new set, taken from old
// ones, or became ready or available.
func hasProgressed(before, after appsv1.DeploymentStatus) bool {
	return after.UpdatedReplicas > before.UpdatedReplicas ||
		after.Replicas-after.UpdatedReplicas < before.Replicas-before.UpdatedReplicas ||
		after.ReadyReplicas > before.ReadyReplicas ||
		after.AvailableReplicas > before.AvailableReplicas
}

// hasTimedOut reports whether nothing has moved for longer than the deadline.
func (r *rollout) hasTimedOut(progress *appsv1.DeploymentCondition) bool {
	if progress == nil || progress.Reason == reasonSetAvailable {
		return false // the last rollout went well, this one has not been noticed yet
	}
	return progress.Reason == reasonTimedOut || !r.now.Before(progress.LastUpdateTime.Add(deadline(r.d)))
}

// untilDeadline is how long status may stay as it is, 0 for ever.
func (r *rollout) untilDeadline(status appsv1.DeploymentStatus) time.Duration {
	progress := find(status.Conditions, appsv1.DeploymentProgressing)
	if !hasDeadline(r.d) || r.d.Spec.Paused || progress == nil || isComplete(r.d, status) ||
		progress.Reason == reasonTimedOut || progress.Reason == reasonSetAvailable {
		return 0
	}
	return max(progress.LastUpdateTime.Add(deadline(r.d)).Sub(r.now), time.Second)
}

// failure is the ReplicaFailure of the new set, else of any.
func (r *rollout) failure() *appsv1.DeploymentCondition {
	sets := r.all()
	slices.Reverse(sets)
	for _, set := range sets {
		for _, c := range set.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				return &appsv1.DeploymentCondition{
					Type:               appsv1.DeploymentReplicaFailure,
					Status:             c.Status,
					LastUpdateTime:     c.LastTransitionTime,
					LastTransitionTime: c.LastTransitionTime,
					Reason:             c.Reason,
					Message:            c.Message,
				}
			}
		}
	}
	return nil
}

func find(conditions []appsv1.DeploymentCondition, kind appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	i := slices.IndexFunc(conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == kind })
	if i < 0 {
		return nil
	}
	return &conditions[i]
}

// with sets a condition, unless it stands already with this status and reason.
func with(conditions []appsv1.DeploymentCondition, kind appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) []appsv1.DeploymentCondition {
	if current := find(conditions, kind); current != nil && current.Status == status && current.Reason == reason {
		return conditions
	}
	return replace(conditions, kind, status, reason, message, now)
}

// replace sets a condition and its lastUpdateTime; lastTransitionTime only
// moves with the status.
func replace(conditions []appsv1.DeploymentCondition, kind appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) []appsv1.DeploymentCondition {
	time := metav1.Time{Time: now}
	c := appsv1.DeploymentCondition{Type: kind, Status: status, LastUpdateTime: time, LastTransitionTime: time, Reason: reason, Message: message}
	if current := find(conditions, kind); current != nil && current.Status == status {
		c.LastTransitionTime = current.LastTransitionTime
	}
	return append(without(conditions, kind), c)
}

func without(conditions []appsv1.DeploymentCondition, kind appsv1.DeploymentConditionType) []appsv1.DeploymentCondition {
	return slices.DeleteFunc(slices.Clone(conditions), func(c appsv1.DeploymentCondition) bool { return c.Type == kind })
}
