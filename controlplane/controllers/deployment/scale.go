package deployment

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// limits are maxSurge and maxUnavailable as numbers of pods.
type limits struct{ surge, unavailable int32 }

// limitsOf rounds percentages, maxSurge up and maxUnavailable down. If both
// come out as zero the rollout could never move, so one pod may be unavailable.
// Recreate has no limits.
func limitsOf(d *appsv1.Deployment) limits {
	update := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || update == nil {
		return limits{}
	}
	want := int(*d.Spec.Replicas)
	// The API server has refused what cannot be parsed.
	surge, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(update.MaxSurge, intstr.FromInt32(0)), want, true)
	unavailable, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(update.MaxUnavailable, intstr.FromInt32(0)), want, false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return limits{int32(surge), int32(min(unavailable, want))}
}

// noteSize records the Deployment's size on a set.
func (r *rollout) noteSize(set *appsv1.ReplicaSet) {
	want := *r.d.Spec.Replicas
	set.Annotations = withEntry(set.Annotations, annotationDesired, strconv.Itoa(int(want)))
	set.Annotations = withEntry(set.Annotations, annotationMax, strconv.Itoa(int(want+limitsOf(r.d).surge)))
}

// wasScaled reports whether the Deployment's size changed since a set with
// pods was last resized.
func (r *rollout) wasScaled() bool {
	return slices.ContainsFunc(active(r.all()), func(set *appsv1.ReplicaSet) bool {
		noted, ok := number(set.Annotations[annotationDesired])
		return ok && noted != *r.d.Spec.Replicas
	})
}

// scale follows a changed size without moving the rollout: a single set takes
// it all, several take their shares.
func (r *rollout) scale() {
	with := active(r.all())
	switch {
	case len(with) == 1:
		r.resize(with[0], *r.d.Spec.Replicas)
		if r.wasScaled() { // somebody gave the set the right size before
			r.noteSize(with[0])
		}
	case len(with) == 0:
		if all := r.all(); len(all) > 0 { // the new set, else the youngest
			r.resize(all[len(all)-1], *r.d.Spec.Replicas)
		}
	case r.isSaturated():
		for _, set := range active(r.old) {
			r.resize(set, 0)
		}
	case r.d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType:
		r.share(with)
	}
}

// isSaturated reports whether the new set alone is all that the Deployment wants.
func (r *rollout) isSaturated() bool {
	if r.newest == nil {
		return false
	}
	want := *r.d.Spec.Replicas
	noted, ok := number(r.newest.Annotations[annotationDesired])
	return ok && noted == want && *r.newest.Spec.Replicas == want && r.newest.Status.AvailableReplicas == want
}

// share spreads what the Deployment grew or shrank by over sets in proportion
// to their sizes, so that a bad template does not spread with it. Larger sets
// come first and the largest takes the rounding leftovers. Of
// equal sets the younger grows first, and the older shrinks first.
func (r *rollout) share(sets []*appsv1.ReplicaSet) {
	var allowed int32
	if want := *r.d.Spec.Replicas; want > 0 {
		allowed = want + limitsOf(r.d).surge
	}
	change := allowed - size(sets)
	slices.SortFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		age := byAge(a, b)
		if change > 0 {
			age = -age
		}
		return cmp.Or(cmp.Compare(*b.Spec.Replicas, *a.Spec.Replicas), age)
	})
	left := change
	sizes := make([]int32, len(sets))
	for i, set := range sets {
		part := clamp(r.part(set), left)
		sizes[i] = *set.Spec.Replicas + part
		left -= part
	}
	if change != 0 {
		sizes[0] = max(sizes[0]+left, 0)
	}
	for i, set := range sets {
		r.resize(set, sizes[i])
		r.noteSize(set)
	}
}

// part is how much the set should grow (or shrink, if negative) to keep its share.
func (r *rollout) part(set *appsv1.ReplicaSet) int32 {
	have := *set.Spec.Replicas
	want := *r.d.Spec.Replicas
	if want == 0 {
		return -have
	}
	// Somebody may have removed the note; then the present size must do.
	was, ok := number(set.Annotations[annotationMax])
	if !ok || was == 0 {
		was = r.d.Status.Replicas
	}
	if was == 0 {
		return 0
	}
	share := float64(have) * float64(want+limitsOf(r.d).surge) / float64(was)
	return int32(math.Round(share)) - have
}

// clamp keeps part between 0 and left, whichever sign left has.
func clamp(part, left int32) int32 {
	switch {
	case left > 0:
		return min(part, left)
	case left < 0:
		return max(part, left)
	}
	return 0
}

// number reads a size from an annotation.
func number(annotation string) (int32, bool) {
	n, err := strconv.ParseInt(annotation, 10, 32)
	return int32(n), err == nil && n >= 0
}
