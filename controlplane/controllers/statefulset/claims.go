package statefulset

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

// claimName is the name of the claim that a template makes for one pod.
func claimName(set *appsv1.StatefulSet, template string, ordinal int) string {
	return template + "-" + set.Name + "-" + strconv.Itoa(ordinal)
}

// isClaimOf reports whether set makes a claim of that name.
func isClaimOf(set *appsv1.StatefulSet, claim string) bool {
	_, ordinal, ok := splitName(claim)
	return ok && slices.ContainsFunc(set.Spec.VolumeClaimTemplates, func(template corev1.PersistentVolumeClaim) bool {
		return claimName(set, template.Name, ordinal) == claim
	})
}

// newClaim returns the claim that a template makes for the pod with this ordinal.
func newClaim(set *appsv1.StatefulSet, template *corev1.PersistentVolumeClaim, ordinal int) *corev1.PersistentVolumeClaim {
	claim := template.DeepCopy()
	claim.Namespace = set.Namespace
	claim.Name = claimName(set, template.Name, ordinal)
	if claim.Labels == nil {
		claim.Labels = map[string]string{}
	}
	maps.Copy(claim.Labels, set.Spec.Selector.MatchLabels)
	if whenDeleted, _ := retention(set); whenDeleted {
		claim.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, kind)}
	}
	return claim
}

// create plans the pod with this ordinal and those of its claims that are
// missing. A claim that is about to go has to be gone first.
func (s *step) create(w *work, ordinal int) {
	pod := s.newPod(ordinal)
	_, whenScaled := retention(s.set)
	for _, template := range s.set.Spec.VolumeClaimTemplates {
		claim := s.claims[claimName(s.set, template.Name, ordinal)]
		switch {
		case claim == nil:
		case whenScaled && belongedTo(claim, pod):
			return // the garbage collector is going to delete it with the former pod
		case claim.DeletionTimestamp != nil:
			s.warn(reasonCreateFailed, "Create Pod %s in StatefulSet %s failed error: pvc %s is being deleted", pod.Name, s.set.Name, claim.Name)
			return
		}
	}
	w.claims, w.create, w.own = s.missingClaims(ordinal), pod, s.ownClaims(pod)
}

// missingClaims returns the claims that are to be made for a pod, be it new or
// pending: without them it can never be scheduled.
func (s *step) missingClaims(ordinal int) []*corev1.PersistentVolumeClaim {
	var missing []*corev1.PersistentVolumeClaim
	for i := range s.set.Spec.VolumeClaimTemplates {
		template := &s.set.Spec.VolumeClaimTemplates[i]
		if s.claims[claimName(s.set, template.Name, ordinal)] == nil {
			missing = append(missing, newClaim(s.set, template, ordinal))
		}
	}
	return missing
}

// ownClaims returns changed copies of those of the pod's claims that should have other owners.
func (s *step) ownClaims(pod *corev1.Pod) []*corev1.PersistentVolumeClaim {
	var changed []*corev1.PersistentVolumeClaim
	for _, template := range s.set.Spec.VolumeClaimTemplates {
		claim := s.claims[claimName(s.set, template.Name, ordinalOf(pod))]
		if claim == nil {
			continue
		}
		refs, conflict := owners(claim, s.set, pod)
		changes := !equality.Semantic.DeepEqual(refs, claim.OwnerReferences)
		if conflict && (changes || pod.UID == "") {
			s.warn(reasonConflict, "PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim", claim.Name)
		}
		if changes {
			updated := *claim
			updated.OwnerReferences = refs
			changed = append(changed, &updated)
		}
	}
	return changed
}

// retention is when the set's claims are deleted: never, unless it says so.
func retention(set *appsv1.StatefulSet) (whenDeleted, whenScaled bool) {
	policy := set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil {
		return false, false
	}
	return policy.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
		policy.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
}

// owners returns the owners that a claim should have, so that the garbage
// collector deletes it at the right time:
//
//	whenDeleted  whenScaled   the pod stays   the pod is condemned
//	Retain       Retain       none            none
//	Delete       Retain       the set         the set
//	Retain       Delete       none            the pod
//	Delete       Delete       the set         the pod
//
// Owners that are none of ours stay. If one of them is a controller, somebody
// else decides on the claim, which is a conflict unless everything is retained. A claim that
// still belongs to a former set or pod of the same name is left alone: the
// garbage collector is about to delete it.
func owners(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, pod *corev1.Pod) (refs []metav1.OwnerReference, conflict bool) {
	whenDeleted, whenScaled := retention(set)
	isCondemned := !isInRange(set, ordinalOf(pod))
	wantPod := whenScaled && isCondemned
	wantSet := whenDeleted && !wantPod

	hasSet, hasPod := false, false
	for _, ref := range claim.OwnerReferences {
		isSet, isPod := refersTo(ref, set, kind), refersTo(ref, pod, podKind)
		isController := ref.Controller != nil && *ref.Controller
		switch {
		case isSet && ref.UID != set.UID, isPod && ref.UID != pod.UID:
			return claim.OwnerReferences, whenDeleted || whenScaled
		case isSet && isController && wantSet:
			hasSet = true
		case isPod && isController && wantPod:
			hasPod = true
		case isSet, isPod:
			continue
		default:
			conflict = conflict || isController && (whenDeleted || whenScaled)
		}
		refs = append(refs, ref)
	}
	switch {
	case conflict:
		refs = slices.DeleteFunc(refs, func(ref metav1.OwnerReference) bool { return refersTo(ref, set, kind) || refersTo(ref, pod, podKind) })
	case wantSet && !hasSet:
		refs = append(refs, *metav1.NewControllerRef(set, kind))
	case wantPod && !hasPod:
		refs = append(refs, *metav1.NewControllerRef(pod, podKind))
	}
	return refs, conflict
}

// refersTo compares kind and name: the object may be another one of that name.
func refersTo(ref metav1.OwnerReference, object metav1.Object, kind schema.GroupVersionKind) bool {
	return ref.APIVersion == kind.GroupVersion().String() && ref.Kind == kind.Kind && ref.Name == object.GetName()
}

// belongedTo reports whether the claim has an owner of pod's name that is not pod.
func belongedTo(claim *corev1.PersistentVolumeClaim, pod *corev1.Pod) bool {
	return slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool {
		return refersTo(ref, pod, podKind) && ref.UID != pod.UID
	})
}

func (s *step) warn(reason, format string, args ...any) {
	s.plan.Warnings = append(s.plan.Warnings, warning{reason, fmt.Sprintf(format, args...)})
}
