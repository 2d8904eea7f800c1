package upstream

import (
	"context"

	"k8s.io/component-base/featuregate"
	"k8s.io/kubernetes/pkg/features"
)

// controllers are the housekeeping controllers, under the names that
// kube-controller-manager gives them. Workloads, endpoints and node pod CIDRs
// are not among them: those are Weft's own.
var controllers = []struct {
	name string
	// gate, if set, is the feature gate the controller belongs to.
	gate featuregate.Feature
	new  func(context.Context, *env) (runFunc, error)
}{
	// Namespaces and identity: nothing starts without these.
	{name: "namespace-controller", new: newNamespace},
	{name: "serviceaccount-controller", new: newServiceAccount},
	{name: "serviceaccount-token-controller", new: newServiceAccountToken},
	{name: "legacy-serviceaccount-token-cleaner-controller", new: newLegacyTokenCleaner},
	{name: "root-ca-certificate-publisher-controller", new: newRootCAPublisher},
	{name: "clusterrole-aggregation-controller", new: newClusterRoleAggregation},
	{name: "resourcequota-controller", new: newResourceQuota},
	{name: "garbage-collector-controller", new: newGarbageCollector},
	{name: "validatingadmissionpolicy-status-controller", new: newAdmissionPolicyStatus},

	// Nodes: joining, certificates, health.
	{name: "certificatesigningrequest-approving-controller", new: newCSRApprover},
	{name: "certificatesigningrequest-signing-controller", new: newCSRSigner},
	{name: "certificatesigningrequest-cleaner-controller", new: newCSRCleaner},
	{name: "podcertificaterequest-cleaner-controller", gate: features.PodCertificateRequest, new: newPodCertificateCleaner},
	{name: "bootstrap-signer-controller", new: newBootstrapSigner},
	{name: "token-cleaner-controller", new: newTokenCleaner},
	{name: "node-lifecycle-controller", new: newNodeLifecycle},
	{name: "taint-eviction-controller", gate: features.SeparateTaintEvictionController, new: newTaintEviction},
	{name: "pod-garbage-collector-controller", new: newPodGC},

	// Workloads' surroundings.
	{name: "disruption-controller", new: newDisruption},
	{name: "horizontal-pod-autoscaler-controller", new: newPodAutoscaler},
	{name: "ttl-after-finished-controller", new: newTTLAfterFinished},
	{name: "resourceclaim-controller", gate: features.DynamicResourceAllocation, new: newResourceClaim},

	// Services: the allocation of addresses.
	{name: "service-cidr-controller", gate: features.MultiCIDRServiceAllocator, new: newServiceCIDR},

	// Storage.
	{name: "persistentvolume-binder-controller", new: newVolumeBinder},
	{name: "persistentvolume-protection-controller", new: newVolumeProtection},
	{name: "persistentvolumeclaim-protection-controller", new: newClaimProtection},
	{name: "ephemeral-volume-controller", new: newEphemeralVolume},
	{name: "volumeattributesclass-protection-controller", gate: features.VolumeAttributesClass, new: newAttributesProtection},
}
