package deployment

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/controlplane/reconcile"
)

// plan is what one step does, in this order.
type plan struct {
	// Create is the new set, if there is none yet.
	Create *appsv1.ReplicaSet
	// Update holds changed copies: sizes, annotations, minReadySeconds.
	Update []*appsv1.ReplicaSet
	// Scalings are the events about changed sizes.
	Scalings []string
	// Delete holds old sets beyond the history limit.
	Delete []*appsv1.ReplicaSet
	// Revision is the Deployment's annotation, "" to leave it.
	Revision string
	Status   appsv1.DeploymentStatus
	// Again is when the progress deadline ends; 0 if it does not matter.
	Again time.Duration
}

// rollout is a Deployment and its sets while one step is decided on. The sets
// are copies; sizes and annotations are changed in place and compared at the end.
type rollout struct {
	d      *appsv1.Deployment
	before map[types.UID]*appsv1.ReplicaSet
	// newest has the Deployment's template; nil if there is no such set.
	newest *appsv1.ReplicaSet
	// old holds all others, oldest first.
	old  []*appsv1.ReplicaSet
	pods map[types.UID][]*corev1.Pod
	now  time.Time
	plan plan
}

// decide returns the next step for d. sets are all that it controls; pods are
// theirs, and looked at for Recreate only.
func decide(d *appsv1.Deployment, sets []*appsv1.ReplicaSet, pods map[types.UID][]*corev1.Pod, now time.Time) plan {
	r := newRollout(d, sets, pods, now)
	if d.DeletionTimestamp != nil {
		r.finish(d.Status, false)
		return r.plan
	}
	status := withPause(d, now)
	if r.newest != nil {
		r.keepRevision()
		status = withFoundSet(d, status, r.newest, now)
	}
	switch {
	case d.Spec.Paused:
		r.scale()
		r.plan.Delete = r.beyondHistory()
		r.finish(status, false)
	case d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		r.recreate()
		r.finish(status, true)
	case r.wasScaled():
		r.scale()
		r.finish(status, false)
	default:
		r.roll()
		r.finish(status, true)
	}
	return r.plan
}

func newRollout(d *appsv1.Deployment, sets []*appsv1.ReplicaSet, pods map[types.UID][]*corev1.Pod, now time.Time) *rollout {
	r := &rollout{d: d, before: map[types.UID]*appsv1.ReplicaSet{}, pods: pods, now: now}
	for _, set := range slices.SortedFunc(slices.Values(sets), byAge) {
		r.before[set.UID] = set
		edited := *set
		edited.Annotations = maps.Clone(set.Annotations)
		edited.Spec.Replicas = new(*set.Spec.Replicas)
		// Should two sets have the template, the older one is the new set.
		if r.newest == nil && sameTemplate(&set.Spec.Template, &d.Spec.Template) {
			r.newest = &edited
		} else {
			r.old = append(r.old, &edited)
		}
	}
	return r
}

func byAge(a, b *appsv1.ReplicaSet) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// all returns every set, the new one last.
func (r *rollout) all() []*appsv1.ReplicaSet {
	if r.newest == nil {
		return r.old
	}
	return append(slices.Clone(r.old), r.newest)
}

func active(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	var kept []*appsv1.ReplicaSet
	for _, set := range sets {
		if *set.Spec.Replicas > 0 {
			kept = append(kept, set)
		}
	}
	return kept
}

// size is the number of pods that sets ask for.
func size(sets []*appsv1.ReplicaSet) int32 {
	var n int32
	for _, set := range sets {
		n += *set.Spec.Replicas
	}
	return n
}

// available is the number of available pods that will be left when the set
// has its size. The status may not have followed a smaller size yet, and the
// pods beyond it do not count any more.
func available(set *appsv1.ReplicaSet) int32 {
	return min(set.Status.AvailableReplicas, *set.Spec.Replicas)
}

// roll moves pods from old sets to the new one, as far as maxSurge and
// maxUnavailable allow at this moment.
func (r *rollout) roll() {
	if r.newest == nil {
		r.createSet()
	}
	limits := limitsOf(r.d)
	if have, want := *r.newest.Spec.Replicas, *r.d.Spec.Replicas; have > want {
		r.resize(r.newest, want)
	} else {
		r.resize(r.newest, min(want, have+r.room(limits)))
	}
	r.shrinkOld(limits)
}

// room is how many pods may be added. There is none while a set still has
// pods that it was told to end: together with new ones they could be more than
// maxSurge allows, and a set that grows again before its last report came
// would seem to have pods that are gone.
func (r *rollout) room(limits limits) int32 {
	for _, set := range r.all() {
		if set != r.plan.Create && (set.Status.ObservedGeneration < set.Generation || set.Status.Replicas > *set.Spec.Replicas) {
			return 0 // its next status queues the Deployment
		}
	}
	return max(*r.d.Spec.Replicas+limits.surge-size(r.all()), 0)
}

// shrinkOld takes pods from the old sets: first those that are not available
// anyway, then as many as stay above the minimum. A new set's pods that
// are not available yet hold back as many old ones.
func (r *rollout) shrinkOld(limits limits) {
	minimum := *r.d.Spec.Replicas - limits.unavailable
	waiting := *r.newest.Spec.Replicas - available(r.newest)
	spare := size(r.all()) - minimum - waiting
	if spare <= 0 {
		return
	}
	for _, set := range r.old {
		n := min(*set.Spec.Replicas-available(set), spare)
		r.resize(set, *set.Spec.Replicas-n)
		spare -= n
	}
	beyond := available(r.newest) - minimum
	for _, set := range r.old {
		beyond += available(set)
	}
	for _, set := range r.old {
		n := min(*set.Spec.Replicas, max(beyond, 0))
		r.resize(set, *set.Spec.Replicas-n)
		beyond -= n
	}
}

// recreate ends every old pod before the first new one is made.
func (r *rollout) recreate() {
	if old := active(r.old); len(old) > 0 {
		for _, set := range old {
			r.resize(set, 0)
		}
		return
	}
	if r.oldPodsRun() {
		return // the end of the last one queues the Deployment
	}
	if r.newest == nil {
		r.createSet()
	}
	r.resize(r.newest, *r.d.Spec.Replicas)
}

func (r *rollout) oldPodsRun() bool {
	for _, set := range r.old {
		if set.Status.Replicas > 0 {
			return true
		}
		if slices.ContainsFunc(r.pods[set.UID], func(pod *corev1.Pod) bool { return !reconcile.IsFinished(pod) }) {
			return true
		}
	}
	return false
}

// beyondHistory returns the old sets, lowest revision first, that exceed the
// history limit and have no pods left.
func (r *rollout) beyondHistory() []*appsv1.ReplicaSet {
	limit := r.d.Spec.RevisionHistoryLimit
	if limit == nil {
		return nil
	}
	kept := slices.DeleteFunc(slices.Clone(r.old), func(set *appsv1.ReplicaSet) bool { return set.DeletionTimestamp != nil })
	slices.SortStableFunc(kept, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(revisionOf(a), revisionOf(b)) })
	surplus := kept[:max(len(kept)-int(*limit), 0)]
	return slices.DeleteFunc(slices.Clone(surplus), func(set *appsv1.ReplicaSet) bool {
		return *set.Spec.Replicas != 0 || set.Status.Replicas != 0 || set.Generation > set.Status.ObservedGeneration
	})
}

// finish collects the changed sets and the status. Progress is only judged
// when a rollout could make some.
func (r *rollout) finish(status appsv1.DeploymentStatus, rolling bool) {
	for _, set := range r.all() {
		before, exists := r.before[set.UID]
		if !exists { // it is to be created
			continue
		}
		if *before.Spec.Replicas != *set.Spec.Replicas || before.Spec.MinReadySeconds != set.Spec.MinReadySeconds ||
			!maps.Equal(before.Annotations, set.Annotations) {
			r.plan.Update = append(r.plan.Update, set)
		}
	}
	if r.newest != nil {
		r.plan.Revision = r.newest.Annotations[annotationRevision]
	}
	counted := r.counts()
	counted.Conditions = withAvailability(status.Conditions, counted, r.d, r.now)
	if rolling {
		counted = r.withProgress(counted)
		if isComplete(r.d, counted) {
			r.plan.Delete = r.beyondHistory()
		}
	}
	r.plan.Status = counted
	r.plan.Again = r.untilDeadline(counted)
}

// resize changes the size of a set, and notes what the Deployment's own size
// was at that time.
func (r *rollout) resize(set *appsv1.ReplicaSet, n int32) {
	had := *set.Spec.Replicas
	if had == n {
		return
	}
	direction := "up"
	if n < had {
		direction = "down"
	}
	*set.Spec.Replicas = n
	r.noteSize(set)
	r.plan.Scalings = append(r.plan.Scalings, fmt.Sprintf("Scaled %s replica set %s from %d to %d", direction, set.Name, had, n))
}
