package volumes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/ephemeral"
)

// mountClaim makes a volume that is claimed: by name, or by the claim that the ephemeral-volume controller made for this pod.
// Persistent volumes are used in place and never deleted from here.
func (m *Manager) mountClaim(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (Mount, error) {
	claim, err := m.claim(ctx, pod, v)
	if err != nil {
		return Mount{}, err
	}
	pv, err := m.boundVolume(ctx, claim)
	if err != nil {
		return Mount{}, err
	}
	mount := Mount{ReadOnly: v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly}
	switch {
	case pv.Spec.HostPath != nil:
		mount.HostPath = pv.Spec.HostPath.Path
		return mount, checkHostPath(pv.Spec.HostPath)
	case pv.Spec.Local != nil:
		mount.HostPath = pv.Spec.Local.Path
		if isDynamicLocal(pv) {
			if err := m.cfg.Local.ensure(pv); err != nil {
				return Mount{}, err
			}
		}
		return mount, m.prepareLocal(pod, v, pv, mount.ReadOnly)
	default:
		return Mount{}, fmt.Errorf("persistentvolume %q: %w", pv.Name, unsupported("spec.%s", persistentSourceField(&pv.Spec.PersistentVolumeSource)))
	}
}

// claim returns the bound PersistentVolumeClaim of a volume.
func (m *Manager) claim(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (*corev1.PersistentVolumeClaim, error) {
	name := ephemeral.VolumeClaimName(pod, v)
	if v.PersistentVolumeClaim != nil {
		name = v.PersistentVolumeClaim.ClaimName
	}
	claim, err := onceBound(ctx, func() (*corev1.PersistentVolumeClaim, error) {
		return m.cfg.Client.CoreV1().PersistentVolumeClaims(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("persistentvolumeclaim %q not found", name)
	}
	if err != nil {
		return nil, fmt.Errorf("persistentvolumeclaim %q: %w", name, err)
	}
	if v.Ephemeral != nil {
		if err := ephemeral.VolumeIsForPod(pod, claim); err != nil {
			return nil, err
		}
	}
	if claim.DeletionTimestamp != nil {
		return nil, fmt.Errorf("persistentvolumeclaim %q is being deleted", name)
	}
	if claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" {
		return nil, fmt.Errorf("persistentvolumeclaim %q is not bound", name)
	}
	return claim, nil
}

// boundVolume returns the PersistentVolume that a claim is bound to.
func (m *Manager) boundVolume(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolume, error) {
	pv, err := onceBound(ctx, func() (*corev1.PersistentVolume, error) {
		return m.cfg.Client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("persistentvolume %q not found", claim.Spec.VolumeName)
	}
	if err != nil {
		return nil, fmt.Errorf("persistentvolume %q: %w", claim.Spec.VolumeName, err)
	}
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim.UID {
		return nil, fmt.Errorf("persistentvolume %q is not bound to persistentvolumeclaim %q", pv.Name, claim.Name)
	}
	if pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		return nil, fmt.Errorf("persistentvolume %q: %w", pv.Name, unsupported("spec.volumeMode Block"))
	}
	return pv, nil
}

// prepareLocal checks a local persistent volume and, once per pod, gives it to the pod's fsGroup.
func (m *Manager) prepareLocal(pod *corev1.Pod, v *corev1.Volume, pv *corev1.PersistentVolume, readOnly bool) error {
	path := pv.Spec.Local.Path
	kind, err := pathType(path)
	if err != nil {
		return fmt.Errorf("persistentvolume %q: spec.local.path: %w", pv.Name, err)
	}
	if kind != corev1.HostPathDirectory {
		return fmt.Errorf("persistentvolume %q: spec.local.path: %s is not a directory, and Weft mounts no devices", pv.Name, path)
	}
	group := fsGroup(pod)
	if group == nil || readOnly {
		return nil
	}
	// kubelet marks finished volumes in the same place (kubernetes/pkg/volume/util/util.go, SetReady).
	ready := filepath.Join(m.PodDir(pod.UID), "plugins", "kubernetes.io~local-volume", v.Name, "ready")
	if exists(ready) {
		return nil
	}
	if !changesOnMismatchOnly(pod) || !belongsToGroup(path, *group) {
		if err := giveToGroup(path, *group, false); err != nil {
			return fmt.Errorf("give %s to fsGroup %d: %w", path, *group, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(ready), 0o750); err != nil {
		return err
	}
	return createFile(ready)
}
