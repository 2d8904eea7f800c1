package localvolume

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"

	"weft.dev/weft/controlplane/api"
)

func claim(edits ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "data", UID: "u1",
			Annotations: map[string]string{volumehelpers.AnnSelectedNode: "n1"},
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: new("local"),
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	for _, edit := range edits {
		edit(claim)
	}
	return claim
}

func class(edits ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	class := &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: "local"},
		Provisioner:       api.LocalVolumeProvisioner,
		ReclaimPolicy:     new(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer),
	}
	for _, edit := range edits {
		edit(class)
	}
	return class
}

func node(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:        name,
		Labels:      map[string]string{corev1.LabelHostname: name + "-host"},
		Annotations: map[string]string{api.VolumesDirAnnotation: "/state/volumes"},
	}}
}

func (p claimPlan) String() string {
	var words []string
	if p.Create != nil {
		words = append(words, "create "+p.Create.Name)
	}
	if p.Refusal != "" {
		words = append(words, "refuse: "+p.Refusal)
	}
	if p.Reschedule {
		words = append(words, "reschedule")
	}
	return strings.Join(words, "; ")
}

func TestDecideClaim(t *testing.T) {
	unselected := func(c *corev1.PersistentVolumeClaim) { c.Annotations = nil }
	cases := []struct {
		name  string
		claim *corev1.PersistentVolumeClaim
		class *storagev1.StorageClass
		node  *corev1.Node
		want  string // the beginning of it
	}{
		{"a claim with a node gets a volume", claim(), class(), node("n1"), "create pvc-u1"},
		{"without a pod that uses it, it waits", claim(unselected), class(), nil, ""},
		{"a claim that has a volume needs none", claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "x" }), class(), node("n1"), ""},
		{"a claim that is being deleted gets none", claim(func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = new(metav1.Now()) }), class(), node("n1"), ""},
		{"a selected node that is gone is given up", claim(), class(), nil, "reschedule"},
		{"a block device is refused", claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) }), class(), node("n1"),
			"refuse: spec.volumeMode: Block is not supported"},
		{"what is wrong with a claim is said before a pod uses it", claim(unselected, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) }), class(), nil,
			"refuse: spec.volumeMode: Block is not supported: local volumes are directories, use Filesystem"},
		{"use by many nodes is refused", claim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = append(c.Spec.AccessModes, corev1.ReadWriteMany)
		}), class(), node("n1"), "refuse: spec.accessModes"},
		{"use by one pod is possible", claim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
		}), class(), node("n1"), "create pvc-u1"},
		{"a copy of another claim is refused", claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource = &corev1.TypedLocalObjectReference{} }), class(), node("n1"), "refuse: spec.dataSource"},
		{"a selector is refused", claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }), class(), node("n1"), "refuse: spec.selector"},
		{"attributes are refused", claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeAttributesClassName = new("gold") }), class(), node("n1"), "refuse: spec.volumeAttributesClassName"},
		{"a class that does not wait for a pod is refused", claim(unselected), class(func(c *storagev1.StorageClass) {
			c.VolumeBindingMode = new(storagev1.VolumeBindingImmediate)
		}), nil, "refuse: StorageClass local: volumeBindingMode must be WaitForFirstConsumer"},
		{"parameters are refused", claim(), class(func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"size": "1"} }), node("n1"), "refuse: StorageClass local: parameters"},
		{"mount options are refused", claim(), class(func(c *storagev1.StorageClass) { c.MountOptions = []string{"noatime"} }), node("n1"), "refuse: StorageClass local: mountOptions"},
		{"a node without a directory is left to others", claim(), class(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, "refuse: node n1 has no directory for volumes"},
		{"a name too long for a label is said so", claim(), class(), node(strings.Repeat("n", 64)), "refuse: node " + strings.Repeat("n", 64) + ": its name cannot be a label"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			plan := decideClaim(c.claim, c.class, c.node)
			if got := plan.String(); !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			_, isSelected := c.claim.Annotations[volumehelpers.AnnSelectedNode]
			if plan.Refusal != "" && plan.Reschedule != isSelected {
				t.Errorf("refused, and Reschedule is %v", plan.Reschedule)
			}
		})
	}
}

func TestAVolumeIsBoundToItsClaimAndItsNode(t *testing.T) {
	pv := decideClaim(claim(), class(), node("n1")).Create
	if got, want := pv.Spec.Local.Path, "/state/volumes/pvc-u1"; got != want {
		t.Errorf("path is %s, want %s", got, want)
	}
	if err := volumehelpers.CheckNodeAffinity(pv, node("n1").Labels); err != nil {
		t.Errorf("its own node: %v", err)
	}
	if err := volumehelpers.CheckNodeAffinity(pv, node("n2").Labels); err == nil {
		t.Error("another node may use it, too")
	}
	if ref := pv.Spec.ClaimRef; ref.Namespace != "ns" || ref.Name != "data" || ref.UID != "u1" {
		t.Errorf("claim is %v", ref)
	}
	if size := pv.Spec.Capacity.Storage().String(); size != "1Gi" {
		t.Errorf("capacity is %s", size)
	}
	if got := decideVolume(pv, true); got != leave {
		t.Errorf("right after it is made, %s", got)
	}
	retained := decideClaim(claim(), class(func(c *storagev1.StorageClass) { c.ReclaimPolicy = new(corev1.PersistentVolumeReclaimRetain) }), node("n1")).Create
	if got := decideVolume(retained, true); got != leave || len(retained.Finalizers) > 0 {
		t.Errorf("a retained one has finalizers %v; %s", retained.Finalizers, got)
	}
}

// volume is described by words: its policy, its phase, "held" by the
// finalizer, "deleting".
func volume(words string) *corev1.PersistentVolume {
	pv := decideClaim(claim(), class(), node("n1")).Create
	pv.Finalizers = nil
	for word := range strings.FieldsSeq(words) {
		switch word {
		case "held":
			pv.Finalizers = append(pv.Finalizers, api.LocalVolumeFinalizer)
		case "deleting":
			pv.DeletionTimestamp = new(metav1.Now())
		case "Delete", "Retain":
			pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimPolicy(word)
		default:
			pv.Status.Phase = corev1.PersistentVolumePhase(word)
		}
	}
	return pv
}

func TestDecideVolume(t *testing.T) {
	cases := []struct {
		name, volume string
		nodeExists   bool
		want         volumePlan
	}{
		{"in use, it stays", "Delete Bound held", true, leave},
		{"released, it is deleted", "Delete Released held", true, deleteVolume},
		{"not before it is held, else the data would outlive it", "Delete Released", true, addFinalizer},
		{"while the agent deletes the data, it stays", "Delete Released held deleting", true, leave},
		{"its data went with its node", "Delete Released held deleting", false, dropFinalizer},
		{"as long as it is in use, a lost node changes nothing", "Delete Bound held", false, leave},
		{"retained, it stays when released", "Retain Released", true, leave},
		{"retained since, it is not held any more", "Retain Bound held", true, dropFinalizer},
		{"retained while being deleted, its data stays", "Retain Released held deleting", true, dropFinalizer},
		{"no longer retained, it is held", "Delete Bound", true, addFinalizer},
		{"what is being deleted cannot be held any more", "Delete Released deleting", true, leave},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := decideVolume(volume(c.volume), c.nodeExists); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
