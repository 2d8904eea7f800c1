package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// orphans lists what is on this node of pods without a worker, that is, of
// pods that were deleted from the API while the agent was away. The pods are
// made up from labels and annotations, just enough to end them properly.
func (m *Manager) orphans(ctx context.Context) ([]*corev1.Pod, error) {
	found := map[types.UID]*corev1.Pod{}
	var errs []error
	sandboxes, err := m.cfg.Runtime.Sandboxes(ctx, nil)
	errs = append(errs, err)
	for _, s := range sandboxes {
		if uid := types.UID(s.Labels[labelPodUID]); uid != "" && m.worker(uid) == nil {
			found[uid] = orphanOf(s)
		}
	}
	if len(found) > 0 {
		containers, err := m.cfg.Runtime.Containers(ctx, nil)
		errs = append(errs, err)
		for _, c := range containers {
			if pod := found[types.UID(c.Labels[labelPodUID])]; pod != nil {
				addContainer(pod, c)
			}
		}
	}
	volumes, err := m.cfg.Volumes.Orphans()
	errs = append(errs, err)
	for _, uid := range volumes {
		m.addOrphan(found, uid)
	}
	cgroups, err := m.cfg.Cgroups.Pods(m.cfg.CgroupParent)
	errs = append(errs, err)
	for uid := range cgroups {
		m.addOrphan(found, uid)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("list orphans: %w", err)
	}
	var out []*corev1.Pod
	for _, pod := range found {
		out = append(out, pod)
	}
	return out, nil
}

func (m *Manager) addOrphan(found map[types.UID]*corev1.Pod, uid types.UID) {
	if found[uid] == nil && m.worker(uid) == nil {
		found[uid] = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}}
	}
}

func orphanOf(s *runtimeapi.PodSandbox) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		UID: types.UID(s.Labels[labelPodUID]), Namespace: s.Labels[labelPodNamespace], Name: s.Labels[labelPodName]}}
	if grace, err := strconv.ParseInt(s.Annotations[annotationTerminationGrace], 10, 64); err == nil {
		pod.DeletionGracePeriodSeconds = &grace
	}
	return pod
}

// addContainer adds a container's name, ports and preStop hook.
func addContainer(pod *corev1.Pod, c *runtimeapi.Container) {
	spec := corev1.Container{Name: c.Labels[labelContainerName]}
	if containerSpec(pod, spec.Name) != nil {
		return
	}
	var hook corev1.LifecycleHandler
	if json.Unmarshal([]byte(c.Annotations[annotationPreStop]), &hook) == nil {
		spec.Lifecycle = &corev1.Lifecycle{PreStop: &hook}
	}
	// Absent or damaged ports only matter to hooks that name one.
	_ = json.Unmarshal([]byte(c.Annotations[annotationPorts]), &spec.Ports)
	pod.Spec.Containers = append(pod.Spec.Containers, spec)
}
