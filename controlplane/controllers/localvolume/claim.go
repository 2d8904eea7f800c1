package localvolume

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	volumehelpers "k8s.io/component-helpers/storage/volume"

	"weft.dev/weft/controlplane/api"
)

// claimPlan is what one pass does about a claim.
type claimPlan struct {
	// Create is the volume to make, nil if none.
	Create *corev1.PersistentVolume
	// Refusal says why no volume can be made as things are; empty if nothing
	// speaks against it.
	Refusal string
	// Reschedule takes the choice of a node back, so that the scheduler
	// chooses again.
	Reschedule bool
}

// decideClaim says what to do about a claim of one of Weft's StorageClasses.
// node is the one that the scheduler selected, nil if it does not exist. What
// is wrong with the claim itself is said before a node is selected.
func decideClaim(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node) claimPlan {
	if claim.DeletionTimestamp != nil || claim.Spec.VolumeName != "" {
		return claimPlan{}
	}
	_, isSelected := claim.Annotations[volumehelpers.AnnSelectedNode]
	if problem := unsupported(claim, class); problem != "" {
		return claimPlan{Refusal: problem, Reschedule: isSelected}
	}
	switch {
	case !isSelected:
		return claimPlan{} // until a pod uses the claim
	case node == nil:
		return claimPlan{Reschedule: true}
	}
	if problem := unable(node); problem != "" {
		return claimPlan{Refusal: problem, Reschedule: true}
	}
	return claimPlan{Create: volumeFor(claim, class, node)}
}

// unsupported names the first field that a directory of a node cannot satisfy.
func unsupported(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) string {
	const onlyDirectories = "local volumes are directories"
	switch spec := claim.Spec; {
	case spec.VolumeMode != nil && *spec.VolumeMode != corev1.PersistentVolumeFilesystem:
		return fmt.Sprintf("spec.volumeMode: %s is not supported: %s, use Filesystem", *spec.VolumeMode, onlyDirectories)
	case slices.Contains(spec.AccessModes, corev1.ReadWriteMany), slices.Contains(spec.AccessModes, corev1.ReadOnlyMany):
		return "spec.accessModes: local volumes are on one node, use ReadWriteOnce or ReadWriteOncePod"
	case spec.DataSource != nil || spec.DataSourceRef != nil:
		return "spec.dataSource: " + onlyDirectories + " that start empty"
	case spec.Selector != nil:
		return "spec.selector: a volume that is made for the claim has no labels to select"
	case spec.VolumeAttributesClassName != nil:
		return "spec.volumeAttributesClassName: " + onlyDirectories + " and have no attributes"
	case class.VolumeBindingMode == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer:
		return fmt.Sprintf("StorageClass %s: volumeBindingMode must be WaitForFirstConsumer: a local volume is on the node of the pod", class.Name)
	case len(class.Parameters) > 0:
		return fmt.Sprintf("StorageClass %s: parameters: there are none for local volumes", class.Name)
	case len(class.MountOptions) > 0:
		return fmt.Sprintf("StorageClass %s: mountOptions: %s, nothing is mounted", class.Name, onlyDirectories)
	}
	return ""
}

// unable says why a node cannot have local volumes.
func unable(node *corev1.Node) string {
	switch {
	case !path.IsAbs(node.Annotations[api.VolumesDirAnnotation]):
		return fmt.Sprintf("node %s has no directory for volumes: its annotation %s is not an absolute path; does a Weft agent of this version run there?", node.Name, api.VolumesDirAnnotation)
	case node.Labels[corev1.LabelHostname] == "":
		return fmt.Sprintf("node %s has no label %s, which volumes are bound to", node.Name, corev1.LabelHostname)
	}
	if problems := validation.IsValidLabelValue(node.Name); len(problems) > 0 {
		return fmt.Sprintf("node %s: its name cannot be a label: %s", node.Name, strings.Join(problems, ", "))
	}
	return ""
}

// volumeFor is the volume of a claim on a node. Its name follows from the
// claim's UID, so there is never a second one.
func volumeFor(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node) *corev1.PersistentVolume {
	name := volumeName(claim)
	filesystem := corev1.PersistentVolumeFilesystem
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:   name,
			Labels: map[string]string{api.NodeLabel: node.Name},
			// Tells the volume binder that deleting is not its business.
			Annotations: map[string]string{volumehelpers.AnnDynamicallyProvisioned: api.LocalVolumeProvisioner},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    &filesystem,
			StorageClassName:              class.Name,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				Local: &corev1.LocalVolumeSource{Path: path.Join(node.Annotations[api.VolumesDirAnnotation], name)},
			},
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node.Labels[corev1.LabelHostname]},
				}},
			}}}},
		},
	}
	if class.ReclaimPolicy != nil {
		volume.Spec.PersistentVolumeReclaimPolicy = *class.ReclaimPolicy
	}
	if volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		volume.Finalizers = []string{api.LocalVolumeFinalizer}
	}
	return volume
}

func volumeName(claim *corev1.PersistentVolumeClaim) string { return "pvc-" + string(claim.UID) }
