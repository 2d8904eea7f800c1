package api

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// LoadBalancerClass is the spec.loadBalancerClass of Services that get their
// address from a LoadBalancerPool. A Service without a class does, too.
const LoadBalancerClass = "weft.dev/loadbalancer"

const (
	// LoadBalancerIPsAnnotation of a Service asks for certain addresses, one of
	// each family at most, separated by commas. It goes before
	// spec.loadBalancerIP, which can name one only.
	LoadBalancerIPsAnnotation = "weft.dev/load-balancer-ips"
	// LoadBalancerPoolAnnotation of a Service says which pools its addresses
	// are from, separated by commas. Weft writes it together with the
	// finalizer service.kubernetes.io/load-balancer-cleanup.
	LoadBalancerPoolAnnotation = "weft.dev/load-balancer-pool"
)

// LoadBalancerPools is the resource of LoadBalancerPool.
var LoadBalancerPools = schema.GroupVersionResource{Group: "weft.dev", Version: "v1alpha1", Resource: "loadbalancerpools"}

// LoadBalancerPool is a set of addresses for Services of type LoadBalancer. It
// is cluster-scoped. controlplane/manifests has its CustomResourceDefinition.
type LoadBalancerPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   LoadBalancerPoolSpec   `json:"spec"`
	Status LoadBalancerPoolStatus `json:"status,omitzero"`
}

// LoadBalancerPoolSpec says which addresses there are, and for whom.
type LoadBalancerPoolSpec struct {
	// Addresses are prefixes (192.0.2.0/24), ranges (192.0.2.10-192.0.2.20) or
	// single addresses of either family. Each address of a prefix is given
	// out, the first and the last included.
	Addresses []string `json:"addresses"`
	// Namespaces whose Services may use the pool; empty means all.
	Namespaces []string `json:"namespaces,omitempty"`
	// ServiceSelector chooses by the Service's labels; nil means all.
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`
}

// LoadBalancerPoolStatus counts addresses.
type LoadBalancerPoolStatus struct {
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Allocated is how many addresses Services have.
	Allocated int64 `json:"allocated"`
	// Available is how many are left; the largest int64 stands for more.
	Available int64 `json:"available"`
	// Conditions: Ready is False if spec.addresses or spec.serviceSelector
	// has a mistake; then nothing is allocated from the pool.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
