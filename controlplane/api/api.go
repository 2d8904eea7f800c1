// Package api holds the few names that Weft adds to the Kubernetes API.
// Control plane and agent share nothing else.
package api

// Defaults of a cluster. All can be set by flags of weft server and weft agent.
const (
	DefaultClusterDomain = "cluster.local"
	DefaultPodCIDR       = "10.244.0.0/16"
	DefaultServiceCIDR   = "10.96.0.0/16"
	// DefaultClusterDNS is the address of the cluster DNS Service
	// (kube-system/kube-dns), the tenth of the Service prefix.
	DefaultClusterDNS = "10.96.0.10"

	// DNSPort is where each node's agent answers cluster DNS on its own
	// node address; the dataplane sends the cluster DNS address there.
	DNSPort = 10053
	// KubeletPort is the port of the node API (logs, exec, port-forward).
	KubeletPort = 10250
)

// SystemNamespace holds Weft's own objects: leases, issued certificates.
const SystemNamespace = "weft-system"

// IngressClassName is the IngressClass of Weft's ingress; its controller
// field is IngressController.
const (
	IngressClassName  = "weft"
	IngressController = "weft.dev/ingress"
)
