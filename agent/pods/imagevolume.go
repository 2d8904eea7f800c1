package pods

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageVolume returns the source of a volume that is an image (KEP-4639), nil
// for any other. The runtime mounts such a volume itself, from the image that
// the agent has it pull.
func imageVolume(pod *corev1.Pod, name string) *corev1.ImageVolumeSource {
	i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name })
	if i < 0 {
		return nil
	}
	return pod.Spec.Volumes[i].Image
}

// imageMount makes a volume's image present and returns its mount, which is
// always read-only.
func (w *worker) imageMount(ctx context.Context, pod *corev1.Pod, c *corev1.Container, m corev1.VolumeMount, source *corev1.ImageVolumeSource, sandbox *runtimeapi.PodSandboxConfig) (*runtimeapi.Mount, error) {
	if source.Reference == "" {
		return nil, failed(reasonInvalidImageName, fmt.Errorf("volumes[name=%s].image.reference is empty", m.Name))
	}
	image, err := w.image(ctx, pod, wantedImage{source.Reference, source.PullPolicy, c}, sandbox)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.Mount{
		ContainerPath: absolute(m.MountPath),
		Readonly:      true,
		Image:         &runtimeapi.ImageSpec{Image: image.Id, UserSpecifiedImage: source.Reference},
		ImageSubPath:  m.SubPath,
	}, nil
}
