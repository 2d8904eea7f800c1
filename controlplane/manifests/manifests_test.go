package manifests

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"weft.dev/weft/controlplane/api"
)

var values = Values{
	ClusterDNS:  netip.MustParseAddr("10.21.0.10"),
	ClusterInfo: "apiVersion: v1\nkind: Config\n",
}

func objects(t *testing.T) (always, once []*unstructured.Unstructured) {
	t.Helper()
	always, once, err := Objects(values)
	if err != nil {
		t.Fatal(err)
	}
	return always, once
}

// find returns the object of that kind and name, as its Go type.
func find[T any](t *testing.T, all []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	for _, obj := range all {
		if obj.GetKind() == kind && obj.GetName() == name {
			out := new(T)
			if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(obj.Object, out, true); err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}

func TestEveryObjectIsValidAndKnown(t *testing.T) {
	always, once := objects(t)
	known := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(known), apiextensionsv1.AddToScheme(known)); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, obj := range append(always, once...) {
		typed, err := known.New(obj.GroupVersionKind())
		if err != nil {
			t.Error(err)
			continue
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(obj.Object, typed, true); err != nil {
			t.Errorf("%s %s: %v", obj.GetKind(), obj.GetName(), err)
		}
		key := obj.GetKind() + "/" + obj.GetNamespace() + "/" + obj.GetName()
		if seen[key] {
			t.Errorf("%s is there twice", key)
		}
		seen[key] = true
	}
}

func TestClusterDNSHasTheAddressOfTheClustersOwnPrefix(t *testing.T) {
	always, _ := objects(t)
	svc := find[corev1.Service](t, always, "Service", "kube-dns")
	if svc.Spec.ClusterIP != "10.21.0.10" {
		t.Errorf("clusterIP is %s", svc.Spec.ClusterIP)
	}
	if len(svc.Spec.Selector) != 0 {
		t.Errorf("selector is %v, but no pod answers DNS", svc.Spec.Selector)
	}
	if _, _, err := Objects(Values{}); err == nil {
		t.Error("a missing address is accepted")
	}
}

func TestClusterInfoHoldsTheKubeconfig(t *testing.T) {
	always, _ := objects(t)
	cm := find[corev1.ConfigMap](t, always, "ConfigMap", "cluster-info")
	if cm.Data["kubeconfig"] != values.ClusterInfo {
		t.Errorf("kubeconfig is %q", cm.Data["kubeconfig"])
	}
}

func TestTheIngressClassIsTheDefaultAndLeftToUsers(t *testing.T) {
	_, once := objects(t)
	class := find[networkingv1.IngressClass](t, once, "IngressClass", "weft")
	if class.Spec.Controller != "weft.dev/ingress" {
		t.Errorf("controller is %s", class.Spec.Controller)
	}
	if class.Annotations[networkingv1.AnnotationIsDefaultIngressClass] != "true" {
		t.Error("it is not the default class")
	}
}

// A node that is taken over must not read the cluster's Secrets, nor change
// what other nodes act upon.
func TestNodesMayReadTheNetworkAndNoSecretsButThoseOfWeft(t *testing.T) {
	always, _ := objects(t)
	cluster := find[rbacv1.ClusterRole](t, always, "ClusterRole", "weft:node")
	for _, rule := range cluster.Rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				isRead := verb == "get" || verb == "list" || verb == "watch"
				if resource == "secrets" || resource == "*" || verb == "*" {
					t.Errorf("nodes may %s %s everywhere", verb, resource)
				}
				if !isRead && !strings.HasSuffix(resource, "/status") {
					t.Errorf("nodes may %s %s", verb, resource)
				}
			}
		}
	}
	role := find[rbacv1.Role](t, always, "Role", "weft:node")
	if role.Namespace != "weft-system" {
		t.Errorf("the role on Secrets is in namespace %q", role.Namespace)
	}
}

// RBAC alone would let a node change every volume of the cluster.
func TestNodesGetRightsOnVolumesAfterThePolicyThatLimitsThem(t *testing.T) {
	always, _ := objects(t)
	var order []string
	for _, obj := range always {
		if obj.GetName() == "weft-node-local-volumes" {
			order = append(order, obj.GetKind())
		}
	}
	want := []string{"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ClusterRole", "ClusterRoleBinding"}
	if !slices.Equal(order, want) {
		t.Errorf("order is %v, want %v", order, want)
	}
}

func TestTheLocalStorageClassIsTheDefaultAndLeftToUsers(t *testing.T) {
	_, once := objects(t)
	class := find[storagev1.StorageClass](t, once, "StorageClass", "local")
	if class.Provisioner != "weft.dev/local" || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer || *class.ReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		t.Errorf("class is %+v", class)
	}
	if class.Annotations["storageclass.kubernetes.io/is-default-class"] != "true" {
		t.Error("it is not the default class")
	}
	if class.AllowVolumeExpansion != nil {
		t.Error("claims could be expanded, which changes nothing on the node")
	}
}

func TestLoadBalancerPoolsAreDefinedAsTheGoTypeIs(t *testing.T) {
	always, _ := objects(t)
	crd := find[apiextensionsv1.CustomResourceDefinition](t, always, "CustomResourceDefinition", "loadbalancerpools.weft.dev")
	version := crd.Spec.Versions[0]
	if r := api.LoadBalancerPools; crd.Spec.Group != r.Group || version.Name != r.Version || crd.Spec.Names.Plural != r.Resource {
		t.Errorf("it defines %s/%s %s", crd.Spec.Group, version.Name, crd.Spec.Names.Plural)
	}
	for field, value := range map[string]any{"spec": api.LoadBalancerPoolSpec{}, "status": api.LoadBalancerPoolStatus{}} {
		defined := version.Schema.OpenAPIV3Schema.Properties[field].Properties
		for i := range reflect.TypeOf(value).NumField() {
			name, _, _ := strings.Cut(reflect.TypeOf(value).Field(i).Tag.Get("json"), ",")
			if _, ok := defined[name]; !ok {
				t.Errorf("%s.%s is not defined", field, name)
			}
		}
	}
}

func TestABootstrapTokenMayOnlyAskForANodeCertificate(t *testing.T) {
	always, _ := objects(t)
	granted := map[string]bool{}
	for _, obj := range always {
		if obj.GetKind() != "ClusterRoleBinding" {
			continue
		}
		binding := find[rbacv1.ClusterRoleBinding](t, always, obj.GetKind(), obj.GetName())
		for _, subject := range binding.Subjects {
			if subject.Name == BootstrapGroup {
				granted[binding.RoleRef.Name] = true
			}
		}
	}
	want := []string{
		"system:node-bootstrapper",
		"system:certificates.k8s.io:certificatesigningrequests:nodeclient",
	}
	for _, role := range want {
		if !granted[role] {
			t.Errorf("%s is not granted", role)
		}
	}
	if len(granted) != len(want) {
		t.Errorf("granted: %v", granted)
	}
}
