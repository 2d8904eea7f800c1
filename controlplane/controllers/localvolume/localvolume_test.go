package localvolume

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubetesting "k8s.io/client-go/testing"
	volumehelpers "k8s.io/component-helpers/storage/volume"

	"weft.dev/weft/controlplane/api"
	"weft.dev/weft/controlplane/controllers/testcluster"
)

// cluster has the class local and the node n1, and the controller at work.
type cluster struct {
	*testcluster.Cluster
	t *testing.T
}

func start(t *testing.T) cluster {
	c := cluster{testcluster.New(t), t}
	testcluster.Must[*storagev1.StorageClass](t)(c.Client.StorageV1().StorageClasses().Create(t.Context(), class(), metav1.CreateOptions{}))
	testcluster.Must[*corev1.Node](t)(c.Client.CoreV1().Nodes().Create(t.Context(), node("n1"), metav1.CreateOptions{}))
	controller, err := New(c.Env("local-volume-controller"))
	if err != nil {
		t.Fatal(err)
	}
	c.Run(controller)
	return c
}

func (c cluster) create(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	c.t.Helper()
	created := testcluster.Must[*corev1.PersistentVolumeClaim](c.t)(c.Client.CoreV1().PersistentVolumeClaims("ns").Create(c.t.Context(), claim, metav1.CreateOptions{}))
	c.Pass(time.Second)
	return created
}

func (c cluster) volume() *corev1.PersistentVolume {
	c.t.Helper()
	return testcluster.Must[*corev1.PersistentVolume](c.t)(c.Client.CoreV1().PersistentVolumes().Get(c.t.Context(), "pvc-u1", metav1.GetOptions{}))
}

// phase plays the volume binder.
func (c cluster) phase(phase corev1.PersistentVolumePhase) {
	c.t.Helper()
	pv := c.volume()
	pv.Status.Phase = phase
	testcluster.Must[*corev1.PersistentVolume](c.t)(c.Client.CoreV1().PersistentVolumes().UpdateStatus(c.t.Context(), pv, metav1.UpdateOptions{}))
	c.Pass(time.Second)
}

func (c cluster) setPolicy(policy corev1.PersistentVolumeReclaimPolicy) {
	c.t.Helper()
	pv := c.volume()
	pv.Spec.PersistentVolumeReclaimPolicy = policy
	testcluster.Must[*corev1.PersistentVolume](c.t)(c.Client.CoreV1().PersistentVolumes().Update(c.t.Context(), pv, metav1.UpdateOptions{}))
	c.Pass(time.Second)
}

func (c cluster) isGone() bool {
	_, err := c.Client.CoreV1().PersistentVolumes().Get(c.t.Context(), "pvc-u1", metav1.GetOptions{})
	return apierrors.IsNotFound(err)
}

func TestAClaimGetsOneVolumeHoweverOftenWritesFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		failures := 3
		c.Refuse(func(action kubetesting.Action) error {
			if failures > 0 && action.GetResource().Resource == "persistentvolumes" {
				failures--
				return errors.New("lost")
			}
			return nil
		})
		c.create(claim())
		c.Pass(time.Minute)
		if got := c.volume().Spec.ClaimRef.UID; got != "u1" || c.Writes("persistentvolumes") != 4 {
			t.Errorf("volume of claim %s after %d writes", got, c.Writes("persistentvolumes"))
		}
	})
}

func TestAClaimWaitsForItsClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		c.create(claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = new("later") }))
		if !c.isGone() {
			t.Fatal("a volume without a class")
		}
		later := class(func(c *storagev1.StorageClass) { c.Name = "later" })
		testcluster.Must[*storagev1.StorageClass](t)(c.Client.StorageV1().StorageClasses().Create(t.Context(), later, metav1.CreateOptions{}))
		c.Pass(time.Second)
		if got := c.volume().Spec.StorageClassName; got != "later" {
			t.Errorf("class of the volume is %s", got)
		}
	})
}

func TestClassesOfOthersAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		other := class(func(c *storagev1.StorageClass) { c.Name, c.Provisioner = "other", "example.com/disk" })
		testcluster.Must[*storagev1.StorageClass](t)(c.Client.StorageV1().StorageClasses().Create(t.Context(), other, metav1.CreateOptions{}))
		c.create(claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = new("other") }))
		if !c.isGone() || c.Writes("persistentvolumeclaims") != 1 {
			t.Error("the claim of another provisioner was worked on")
		}
	})
}

func TestAClaimWhoseNodeIsGoneGoesBackToTheScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		c.create(claim(func(c *corev1.PersistentVolumeClaim) { c.Annotations[volumehelpers.AnnSelectedNode] = "n9" }))
		got := testcluster.Must[*corev1.PersistentVolumeClaim](t)(c.Client.CoreV1().PersistentVolumeClaims("ns").Get(t.Context(), "data", metav1.GetOptions{}))
		if node, ok := got.Annotations[volumehelpers.AnnSelectedNode]; ok {
			t.Errorf("still on node %q", node)
		}
	})
}

func TestARefusalIsAnEventOnTheClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		c.create(claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) }))
		events := testcluster.Must[*corev1.EventList](t)(c.Client.CoreV1().Events("ns").List(t.Context(), metav1.ListOptions{}))
		if !slices.ContainsFunc(events.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.Name == "data" && e.Reason == reasonFailed && strings.Contains(e.Message, "spec.volumeMode")
		}) {
			t.Errorf("events are %v", events.Items)
		}
		if !c.isGone() {
			t.Error("there is a volume")
		}
	})
}

func TestAReleasedVolumeStaysUntilItsNodeHasDeletedTheData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		c.create(claim())
		c.phase(corev1.VolumeBound)
		c.phase(corev1.VolumeReleased)
		pv := c.volume()
		if pv.DeletionTimestamp == nil || !slices.Contains(pv.Finalizers, api.LocalVolumeFinalizer) {
			t.Fatalf("deleted %v, finalizers %v", pv.DeletionTimestamp, pv.Finalizers)
		}
		if err := c.Client.CoreV1().Nodes().Delete(t.Context(), "n1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Pass(time.Second)
		if !c.isGone() {
			t.Error("the node is gone and the volume is not")
		}
	})
}

func TestThePolicyMayChangeWhileAVolumeIsInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		c.create(claim())
		c.phase(corev1.VolumeBound)
		c.setPolicy(corev1.PersistentVolumeReclaimRetain)
		c.phase(corev1.VolumeReleased)
		if pv := c.volume(); pv.DeletionTimestamp != nil || len(pv.Finalizers) > 0 {
			t.Errorf("a retained volume: deleted %v, finalizers %v", pv.DeletionTimestamp, pv.Finalizers)
		}
		c.setPolicy(corev1.PersistentVolumeReclaimDelete)
		if pv := c.volume(); pv.DeletionTimestamp == nil || len(pv.Finalizers) != 1 {
			t.Errorf("no longer retained: deleted %v, finalizers %v", pv.DeletionTimestamp, pv.Finalizers)
		}
	})
}

func TestAClaimGetsAnotherVolumeWhenItsFirstIsDeletedUnbound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		c.create(claim())
		first := c.volume().UID
		if err := c.Client.CoreV1().PersistentVolumes().Delete(t.Context(), "pvc-u1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Pass(time.Second)
		pv := c.volume()
		pv.Finalizers = nil // the node reports that the data is gone
		testcluster.Must[*corev1.PersistentVolume](t)(c.Client.CoreV1().PersistentVolumes().Update(t.Context(), pv, metav1.UpdateOptions{}))
		c.Pass(time.Second)
		if second := c.volume().UID; second == first {
			t.Error("it is the same volume")
		}
	})
}
