package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"weft.dev/weft/controlplane/api"
)

// asNode is a client with the rights of a node.
func (w world) asNode(t *testing.T, name string) kubernetes.Interface {
	t.Helper()
	cfg := rest.CopyConfig(w.cfg)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + name, Groups: []string{"system:nodes"}}
	return must[*kubernetes.Clientset](t)(kubernetes.NewForConfig(cfg))
}

// localVolume follows a volume from its claim to its end, and tries what a
// node must not do to it on the way.
func (w world) localVolume(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:        "storage",
		Labels:      map[string]string{corev1.LabelHostname: "storage"},
		Annotations: map[string]string{api.VolumesDirAnnotation: "/state/volumes"},
	}}
	must[*corev1.Node](t)(w.admin.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}))
	t.Cleanup(func() { _ = w.admin.CoreV1().Nodes().Delete(context.Background(), node.Name, metav1.DeleteOptions{}) })
	claims, volumes := w.admin.CoreV1().PersistentVolumeClaims("default"), w.admin.CoreV1().PersistentVolumes()
	must[*corev1.PersistentVolumeClaim](t)(claims.Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data", Annotations: map[string]string{"volume.kubernetes.io/selected-node": node.Name}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}, metav1.CreateOptions{}))
	var name string
	eventually(t, "the claim is bound to a volume of the default class", func() error {
		claim, err := claims.Get(t.Context(), "data", metav1.GetOptions{})
		if err == nil && claim.Status.Phase != corev1.ClaimBound {
			err = fmt.Errorf("phase is %s", claim.Status.Phase)
		}
		if err == nil {
			name = claim.Spec.VolumeName
		}
		return err
	})
	patch := func(by, patch string) error {
		_, err := w.asNode(t, by).CoreV1().PersistentVolumes().Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	const done = `{"metadata":{"finalizers":["kubernetes.io/pv-protection"]}}`
	refused := func(what string, err error) {
		t.Helper()
		if !apierrors.IsInvalid(err) {
			t.Errorf("%s: %v, want it refused", what, err)
		}
	}
	refused("its node lets a volume in use go", patch("storage", done))
	refused("another node lets it go", patch("node-1", done))
	refused("its node takes it over", patch("storage", `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`))

	if err := claims.Delete(t.Context(), "data", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the volume is being deleted, and held", func() error {
		pv, err := volumes.Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && (pv.DeletionTimestamp == nil || !slices.Equal(pv.Finalizers, []string{api.LocalVolumeFinalizer})) {
			err = fmt.Errorf("phase %s, finalizers %v", pv.Status.Phase, pv.Finalizers)
		}
		return err
	})
	const gone = `{"metadata":{"finalizers":[]}}`
	refused("another node lets it go", patch("node-1", gone))
	refused("its node gives it to another", patch("storage", `{"metadata":{"labels":{"weft.dev/node":"node-1"}}}`))
	if err := patch("storage", gone); err != nil {
		t.Errorf("its node lets it go: %v", err)
	}
	if _, err := volumes.Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the volume is still there: %v", err)
	}
}

// loadBalancer follows a Service through a pool.
func (w world) loadBalancer(t *testing.T) {
	pools := must[*dynamic.DynamicClient](t)(dynamic.NewForConfig(w.cfg)).Resource(api.LoadBalancerPools)
	create := func(name string, addresses ...any) error {
		_, err := pools.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "weft.dev/v1alpha1", "kind": "LoadBalancerPool", "metadata": map[string]any{"name": name},
			"spec": map[string]any{"addresses": addresses},
		}}, metav1.CreateOptions{})
		return err
	}
	for _, mistake := range []any{"here", "192.0.2.0/33", "192.0.2.1-", "192.0.2.1-192.0.2.2-192.0.2.3"} {
		if err := create("bad", mistake); !apierrors.IsInvalid(err) {
			t.Errorf("pool of %q: %v, want it refused", mistake, err)
		}
	}
	if err := create("pool", "198.51.100.7", "2001:db8::/112", "203.0.113.0/24"); err != nil {
		t.Fatal(err)
	}
	services := w.admin.CoreV1().Services("default")
	must[*corev1.Service](t)(services.Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "balanced"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{}))
	allocated := func(want int64) func() error {
		return func() error {
			pool, err := pools.Get(t.Context(), "pool", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if got, _, _ := unstructured.NestedInt64(pool.Object, "status", "allocated"); got != want {
				return fmt.Errorf("status is %v", pool.Object["status"])
			}
			return nil
		}
	}
	eventually(t, "the Service has an address", func() error {
		svc, err := services.Get(t.Context(), "balanced", metav1.GetOptions{})
		if err == nil && (len(svc.Status.LoadBalancer.Ingress) != 1 || svc.Status.LoadBalancer.Ingress[0].IP != "198.51.100.7") {
			err = fmt.Errorf("status is %+v", svc.Status)
		}
		return errors.Join(err, allocated(1)())
	})
	if err := services.Delete(t.Context(), "balanced", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the address is released with the Service", allocated(0))
}
