package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// hostsPath is where the node's own hosts file is.
const hostsPath = "/etc/hosts"

// hostsFile is the content of a pod's /etc/hosts.
func hostsFile(pod *corev1.Pod, ips []string, clusterDomain string) string {
	var out strings.Builder
	out.WriteString(managedHostsHeader)
	out.WriteString("127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\n" +
		"fe00::0\tip6-mcastprefix\n" +
		"fe00::1\tip6-allnodes\n" +
		"fe00::2\tip6-allrouters\n")
	host, domain := hostname(pod, clusterDomain)
	for _, ip := range ips {
		if domain != "" {
			fmt.Fprintf(&out, "%s\t%s.%s\t%s\n", ip, host, domain, host)
		} else {
			fmt.Fprintf(&out, "%s\t%s\n", ip, host)
		}
	}
	out.WriteString(hostAliases(pod))
	return out.String()
}

func hostAliases(pod *corev1.Pod) string {
	if len(pod.Spec.HostAliases) == 0 {
		return ""
	}
	var out strings.Builder
	out.WriteString("\n# Entries added by HostAliases.\n")
	for _, alias := range pod.Spec.HostAliases {
		fmt.Fprintf(&out, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
	}
	return out.String()
}

// writeHosts writes a pod's hosts file and returns its path.
func (n node) writeHosts(pod *corev1.Pod, ips []string) (string, error) {
	content := hostsFile(pod, ips, n.dns.clusterDomain)
	if pod.Spec.HostNetwork {
		nodes, err := os.ReadFile(hostsPath)
		if err != nil {
			return "", fmt.Errorf("read the node's hosts file: %w", err)
		}
		content = managedHostsHeaderOfTheNode + string(nodes) + hostAliases(pod)
	}
	path := filepath.Join(n.podDir(pod), "etc-hosts")
	// Written in place, not replaced: running containers have it mounted.
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return "", fmt.Errorf("write hosts file: %w", err)
	}
	return path, nil
}
