package pods

import (
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxHostname is the longest hostname, in bytes, that the kernel keeps.
const maxHostname = 63

// node is what the configuration of a pod takes from the node.
type node struct {
	logDir, kubeletDir, cgroupParent string
	dns                              resolver
}

// podLogDir is where the logs of a pod are, as kubelet names it.
func (n node) podLogDir(pod *corev1.Pod) string {
	return filepath.Join(n.logDir, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// podDir holds what the agent keeps of a pod: volumes, hosts file, messages.
func (n node) podDir(pod *corev1.Pod) string {
	return filepath.Join(n.kubeletDir, "pods", string(pod.UID))
}

// logPath is a container's log file, relative to the pod's log directory.
func logPath(container string, restartCount int32) string {
	return filepath.Join(container, strconv.Itoa(int(restartCount))+".log")
}

// podCgroup is the pod's cgroup, from the root of the cgroup file systems.
func (n node) podCgroup(pod *corev1.Pod) string {
	return path.Join("/", n.cgroupParent, "kubepods", qosDir(pod.Status.QOSClass), "pod"+string(pod.UID))
}

func qosDir(class corev1.PodQOSClass) string {
	switch class {
	case corev1.PodQOSGuaranteed:
		return ""
	case corev1.PodQOSBurstable:
		return "burstable"
	default:
		return "besteffort"
	}
}

// sandboxConfig is the request for a pod's sandbox. Pure but for the node's
// resolv.conf, which dns.go reads.
func (n node) sandboxConfig(pod *corev1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	dns, err := n.dns.config(pod)
	if err != nil {
		return nil, err
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{
			Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt},
		LogDirectory: n.podLogDir(pod),
		DnsConfig:    dns,
		PortMappings: portMappings(pod),
		Labels:       podLabels(pod),
		Annotations:  podAnnotations(pod),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    n.podCgroup(pod),
			SecurityContext: sandboxSecurity(pod),
			Sysctls:         sysctls(pod),
			Resources:       podResources(pod),
		},
	}
	if !pod.Spec.HostNetwork {
		host, domain := hostname(pod, n.dns.clusterDomain)
		if pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN && domain != "" {
			host += "." + domain
			if len(host) > maxHostname+1 {
				return nil, fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (64 characters is the max, %d characters requested)", host, len(host))
			}
		}
		config.Hostname = host
	}
	return config, nil
}

// podLabels are the pod's own labels and those that identify it.
func podLabels(pod *corev1.Pod) map[string]string {
	labels := map[string]string{}
	for k, v := range pod.Labels {
		labels[k] = v
	}
	labels[labelPodName], labels[labelPodNamespace], labels[labelPodUID] = pod.Name, pod.Namespace, string(pod.UID)
	return labels
}

// podAnnotations are the pod's own annotations and what is needed to stop the
// pod properly when the API no longer knows it.
func podAnnotations(pod *corev1.Pod) map[string]string {
	annotations := map[string]string{}
	for k, v := range pod.Annotations {
		annotations[k] = v
	}
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		annotations[annotationTerminationGrace] = strconv.FormatInt(*pod.Spec.TerminationGracePeriodSeconds, 10)
	}
	return annotations
}

// hostname returns a pod's host name and its DNS domain, "" if it has none.
func hostname(pod *corev1.Pod, clusterDomain string) (host, domain string) {
	if pod.Spec.HostnameOverride != nil {
		return truncateHostname(*pod.Spec.HostnameOverride), ""
	}
	host = pod.Name
	if pod.Spec.Hostname != "" {
		host = pod.Spec.Hostname
	}
	if pod.Spec.Subdomain != "" {
		domain = fmt.Sprintf("%s.%s.svc.%s", pod.Spec.Subdomain, pod.Namespace, clusterDomain)
	}
	return truncateHostname(host), domain
}

func truncateHostname(name string) string {
	if len(name) <= maxHostname {
		return name
	}
	return strings.TrimRight(name[:maxHostname], "-.")
}

// portMappings lists host ports. With the host's network there is nothing to map.
func portMappings(pod *corev1.Pod) []*runtimeapi.PortMapping {
	if pod.Spec.HostNetwork {
		return nil
	}
	var out []*runtimeapi.PortMapping
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.HostPort > 0 {
				out = append(out, &runtimeapi.PortMapping{Protocol: criProtocol(port.Protocol),
					ContainerPort: port.ContainerPort, HostPort: port.HostPort, HostIp: port.HostIP})
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		if isSidecar(&pod.Spec.InitContainers[i]) {
			add(&pod.Spec.InitContainers[i])
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return out
}

func criProtocol(p corev1.Protocol) runtimeapi.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return runtimeapi.Protocol_UDP
	case corev1.ProtocolSCTP:
		return runtimeapi.Protocol_SCTP
	default:
		return runtimeapi.Protocol_TCP
	}
}

func sysctls(pod *corev1.Pod) map[string]string {
	out := map[string]string{}
	if sc := pod.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			// Both separators are valid in the API; runtimes want dots.
			out[strings.ReplaceAll(s.Name, "/", ".")] = s.Value
		}
	}
	return out
}
