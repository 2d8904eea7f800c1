// Package downward computes the values of the downward API: what a container may learn about its own pod through environment
// variables (agent/pods) and files (agent/volumes). All functions are pure.
package downward

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
)

// Addresses are what a pod object may not tell yet when its containers start. The first of each list is the preferred one.
type Addresses struct {
	HostIPs []string
	PodIPs  []string
}

// FieldRef returns the value of one field of pod: metadata.name, .namespace, .uid, .labels, .annotations, .labels['KEY'],
// .annotations['KEY'], spec.nodeName, spec.serviceAccountName, status.hostIP, .hostIPs, .podIP and .podIPs. A key that is not
// there, like an address that is not known, gives "".
func FieldRef(ref *corev1.ObjectFieldSelector, pod *corev1.Pod, addrs Addresses) (string, error) {
	if ref.APIVersion != "" && ref.APIVersion != "v1" {
		return "", fmt.Errorf("fieldRef.apiVersion: %q is not supported, only v1", ref.APIVersion)
	}
	switch ref.FieldPath {
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(addrs.HostIPs), nil
	case "status.hostIPs":
		return strings.Join(addrs.HostIPs, ","), nil
	case "status.podIP":
		return first(addrs.PodIPs), nil
	case "status.podIPs":
		return strings.Join(addrs.PodIPs, ","), nil
	}
	value, err := fieldpath.ExtractFieldPathAsString(pod, ref.FieldPath)
	if err != nil {
		return "", fmt.Errorf("fieldRef.fieldPath: %w", err)
	}
	return value, nil
}

// ResourceFieldRef returns a request or limit of a container of pod, divided by the divisor (default 1) and rounded up. The
// container is the one that ref names, else own (nil in a volume, where ref must name one). A limit of CPU, memory or ephemeral
// storage that is not set is what the node can allocate.
func ResourceFieldRef(ref *corev1.ResourceFieldSelector, pod *corev1.Pod, own *corev1.Container, allocatable corev1.ResourceList) (string, error) {
	name := ref.ContainerName
	if name == "" {
		if own == nil {
			return "", fmt.Errorf("resourceFieldRef.containerName: required in a volume")
		}
		name = own.Name
	}
	value, err := resource.ExtractResourceValueByContainerNameAndNodeAllocatable(ref, pod, name, allocatable)
	if err != nil {
		return "", fmt.Errorf("resourceFieldRef: %w", err)
	}
	return value, nil
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}
