package statefulset

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/controlplane/reconcile"
)

// splitName reads "<set>-<ordinal>". ok is false for names that no set gives.
func splitName(pod string) (set string, ordinal int, ok bool) {
	dash := strings.LastIndexByte(pod, '-')
	if dash < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseInt(pod[dash+1:], 10, 32)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != pod[dash+1:] {
		return "", 0, false
	}
	return pod[:dash], int(n), true
}

// isMember reports whether the pod has a name that set gives.
func isMember(set *appsv1.StatefulSet, podName string) bool {
	parent, _, ok := splitName(podName)
	return ok && parent == set.Name
}

// ordinalOf returns the ordinal of a member.
func ordinalOf(pod *corev1.Pod) int {
	_, ordinal, _ := splitName(pod.Name)
	return ordinal
}

// start is the set's lowest ordinal.
func start(set *appsv1.StatefulSet) int {
	if set.Spec.Ordinals == nil {
		return 0
	}
	return int(set.Spec.Ordinals.Start)
}

// isInRange reports whether the set should have a pod with this ordinal.
func isInRange(set *appsv1.StatefulSet, ordinal int) bool {
	return ordinal >= start(set) && ordinal < start(set)+int(*set.Spec.Replicas)
}

func podName(set *appsv1.StatefulSet, ordinal int) string {
	return set.Name + "-" + strconv.Itoa(ordinal)
}

// revisionOf returns the name of the revision that the pod was made from.
func revisionOf(pod *corev1.Pod) string { return pod.Labels[appsv1.StatefulSetRevisionLabel] }

// newPod returns the pod with this ordinal. Below a rollout's partition it is made
// from the current revision, so that a canary stays one when other pods get lost.
func (s *step) newPod(ordinal int) *corev1.Pod {
	from := s.update
	if ordinal < start(s.set)+partition(s.set) {
		from = s.current
	}
	pod := reconcile.NewPod(from.template, s.set, kind)
	pod.Name = podName(s.set, ordinal)
	setIdentity(pod)
	pod.Labels[appsv1.StatefulSetRevisionLabel] = from.name
	pod.Spec.Hostname = pod.Name
	pod.Spec.Subdomain = s.set.Spec.ServiceName
	pod.Spec.Volumes = withClaimVolumes(s.set, pod)
	return pod
}

// setIdentity sets the labels that Services and people find a single pod by.
func setIdentity(pod *corev1.Pod) {
	pod.Labels = maps.Clone(pod.Labels)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.StatefulSetPodNameLabel] = pod.Name
	pod.Labels[appsv1.PodIndexLabel] = strconv.Itoa(ordinalOf(pod))
}

// withClaimVolumes returns the pod's volumes with those of the claim
// templates; they replace others of the same name.
func withClaimVolumes(set *appsv1.StatefulSet, pod *corev1.Pod) []corev1.Volume {
	var volumes []corev1.Volume
	for _, template := range set.Spec.VolumeClaimTemplates {
		volumes = append(volumes, corev1.Volume{
			Name: template.Name,
			VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{
				ClaimName: claimName(set, template.Name, ordinalOf(pod)),
			}},
		})
	}
	own := len(volumes)
	for _, volume := range pod.Spec.Volumes {
		if !slices.ContainsFunc(volumes[:own], func(v corev1.Volume) bool { return v.Name == volume.Name }) {
			volumes = append(volumes, volume)
		}
	}
	return volumes
}

// hasClaimVolumes reports whether every claim template is a volume of the pod.
func hasClaimVolumes(set *appsv1.StatefulSet, pod *corev1.Pod) bool {
	for _, template := range set.Spec.VolumeClaimTemplates {
		want := claimName(set, template.Name, ordinalOf(pod))
		if !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
			return v.Name == template.Name && v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == want
		}) {
			return false
		}
	}
	return true
}

// repaired gives an existing pod back what makes it a member, which an adopted
// one may lack; nil if nothing is missing. The API server refuses new volumes on
// a pod that exists; then the user sees why in an event.
func (s *step) repaired(pod *corev1.Pod) *corev1.Pod {
	isComplete := pod.Labels[appsv1.StatefulSetPodNameLabel] == pod.Name && hasClaimVolumes(s.set, pod)
	if isComplete || pod.DeletionTimestamp != nil {
		return nil
	}
	repaired := *pod
	setIdentity(&repaired)
	if !hasClaimVolumes(s.set, pod) {
		repaired.Spec.Volumes = withClaimVolumes(s.set, pod)
	}
	return &repaired
}
