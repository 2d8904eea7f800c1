package pods

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits of resolv.conf that pods are held to
// (k8s.io/kubernetes/pkg/apis/core/validation).
const (
	maxNameservers    = 3
	maxSearchDomains  = 32
	maxSearchListSize = 2048
)

// resolver makes the resolv.conf of pods.
type resolver struct {
	clusterDNS    []netip.Addr
	clusterDomain string
	hostFile      string // "" = pods with policy Default resolve nothing
}

// config is the DNS configuration of one pod.
// https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#pod-s-dns-policy
func (r resolver) config(pod *corev1.Pod) (*runtimeapi.DNSConfig, error) {
	host, err := r.host()
	if err != nil {
		return nil, err
	}
	config := host
	switch policy := pod.Spec.DNSPolicy; {
	case policy == corev1.DNSNone:
		config = &runtimeapi.DNSConfig{}
	case policy == corev1.DNSDefault, policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork, len(r.clusterDNS) == 0:
	default:
		config = r.cluster(pod.Namespace, host)
	}
	if pod.Spec.DNSConfig != nil {
		config = withDNSConfig(config, pod.Spec.DNSConfig)
	}
	return fitDNS(config), nil
}

// cluster asks the cluster DNS, for the names of the namespace first.
func (r resolver) cluster(namespace string, host *runtimeapi.DNSConfig) *runtimeapi.DNSConfig {
	config := &runtimeapi.DNSConfig{Options: []string{"ndots:5"}}
	for _, server := range r.clusterDNS {
		config.Servers = append(config.Servers, server.String())
	}
	if r.clusterDomain != "" {
		config.Searches = []string{namespace + ".svc." + r.clusterDomain, "svc." + r.clusterDomain, r.clusterDomain}
	}
	config.Searches = unique(append(config.Searches, host.Searches...))
	return config
}

// host reads the node's resolv.conf.
func (r resolver) host() (*runtimeapi.DNSConfig, error) {
	if r.hostFile == "" {
		return &runtimeapi.DNSConfig{Servers: []string{"127.0.0.1"}, Searches: []string{"."}}, nil
	}
	file, err := os.Open(r.hostFile)
	if err != nil {
		return nil, fmt.Errorf("read the node's resolv.conf: %w", err)
	}
	defer file.Close()
	config := &runtimeapi.DNSConfig{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(strings.TrimLeft(lines.Text(), " \t"))
		if len(fields) == 0 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if len(fields) > 1 {
				config.Servers = append(config.Servers, fields[1])
			}
		case "search":
			config.Searches = nil // the last line counts
			for _, domain := range fields[1:] {
				if domain != "." {
					domain = strings.TrimSuffix(domain, ".")
				}
				config.Searches = append(config.Searches, domain)
			}
		case "options":
			config.Options = fields[1:]
		}
	}
	return config, lines.Err()
}

// withDNSConfig adds what spec.dnsConfig says; its options win over others of
// the same name.
func withDNSConfig(base *runtimeapi.DNSConfig, add *corev1.PodDNSConfig) *runtimeapi.DNSConfig {
	out := &runtimeapi.DNSConfig{
		Servers:  unique(append(slices.Clone(base.Servers), add.Nameservers...)),
		Searches: unique(append(slices.Clone(base.Searches), add.Searches...)),
	}
	overridden := map[string]bool{}
	for _, option := range add.Options {
		overridden[option.Name] = true
	}
	for _, option := range base.Options {
		name, _, _ := strings.Cut(option, ":")
		if !overridden[name] {
			out.Options = append(out.Options, option)
		}
	}
	for _, option := range add.Options {
		text := option.Name
		if option.Value != nil && *option.Value != "" {
			text += ":" + *option.Value
		}
		out.Options = append(out.Options, text)
	}
	return out
}

// fitDNS cuts what resolvers would ignore or choke on.
func fitDNS(config *runtimeapi.DNSConfig) *runtimeapi.DNSConfig {
	if len(config.Servers) > maxNameservers {
		config.Servers = config.Servers[:maxNameservers]
	}
	if len(config.Searches) > maxSearchDomains {
		config.Searches = config.Searches[:maxSearchDomains]
	}
	for len(strings.Join(config.Searches, " ")) > maxSearchListSize {
		config.Searches = config.Searches[:len(config.Searches)-1]
	}
	return config
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
