package localvolume

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"

	"weft.dev/weft/controlplane/api"
)

// volumePlan is what one pass does about a volume: at most one thing.
type volumePlan int

const (
	leave volumePlan = iota
	// addFinalizer makes the volume stay until its data is gone.
	addFinalizer
	// dropFinalizer lets the volume go without its data.
	dropFinalizer
	// deleteVolume asks the node's agent to delete the data.
	deleteVolume
)

func (p volumePlan) String() string {
	return [...]string{"leave it", "add the finalizer", "drop the finalizer", "delete it"}[p]
}

// isOurs reports whether a volume was made by this controller.
func isOurs(pv *corev1.PersistentVolume) bool {
	return pv.Annotations[volumehelpers.AnnDynamicallyProvisioned] == api.LocalVolumeProvisioner && pv.Spec.Local != nil
}

// decideVolume says what to do about a volume that this controller made. Its
// reclaim policy may have been changed since.
func decideVolume(pv *corev1.PersistentVolume, nodeExists bool) volumePlan {
	takesData := pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
	isHeld := slices.Contains(pv.Finalizers, api.LocalVolumeFinalizer)
	isDeleting := pv.DeletionTimestamp != nil
	switch {
	case !takesData && isHeld:
		return dropFinalizer
	case takesData && isDeleting && isHeld && !nodeExists:
		return dropFinalizer // the data went with the node
	case takesData && !isDeleting && !isHeld:
		return addFinalizer
	case takesData && !isDeleting && pv.Status.Phase == corev1.VolumeReleased:
		return deleteVolume
	}
	return leave
}
