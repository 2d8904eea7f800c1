package reconcile

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
)

// NewPod returns the pod that owner creates from template, named by the API
// server after owner. Callers that need a fixed name set it.
func NewPod(template *corev1.PodTemplateSpec, owner metav1.Object, kind schema.GroupVersionKind) *corev1.Pod {
	template = template.DeepCopy()
	prefix := owner.GetName()
	if len(prefix) < validation.DNS1123SubdomainMaxLength {
		prefix += "-"
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       owner.GetNamespace(),
			GenerateName:    prefix,
			Labels:          template.Labels,
			Annotations:     template.Annotations,
			Finalizers:      template.Finalizers,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)},
		},
		Spec: template.Spec,
	}
}

// IsFinished reports whether all of the pod's containers have stopped for good.
func IsFinished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// IsActive reports whether the pod runs or will run, and nobody has asked it to end.
func IsActive(pod *corev1.Pod) bool { return !IsFinished(pod) && pod.DeletionTimestamp == nil }

// IsTerminating reports whether the pod was asked to end and still may run.
func IsTerminating(pod *corev1.Pod) bool { return !IsFinished(pod) && pod.DeletionTimestamp != nil }

// ReadySince returns the pod's Ready condition and whether it is true.
func ReadySince(pod *corev1.Pod) (time.Time, bool) {
	i := slices.IndexFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
	if i < 0 || pod.Status.Conditions[i].Status != corev1.ConditionTrue {
		return time.Time{}, false
	}
	return pod.Status.Conditions[i].LastTransitionTime.Time, true
}

// IsReady reports whether the pod's Ready condition is true.
func IsReady(pod *corev1.Pod) bool {
	_, ready := ReadySince(pod)
	return ready
}

// IsAvailable reports whether the pod has been ready for minReadySeconds. If
// it is ready but not for long enough yet, after is how long it takes.
func IsAvailable(pod *corev1.Pod, minReadySeconds int32, now time.Time) (available bool, after time.Duration) {
	since, ready := ReadySince(pod)
	switch {
	case !ready:
		return false, 0
	case minReadySeconds == 0:
		return true, 0
	case since.IsZero():
		return false, 0
	}
	after = since.Add(time.Duration(minReadySeconds) * time.Second).Sub(now)
	return after <= 0, max(after, 0)
}
