package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// mode is a mode of kube-proxy.
type mode struct {
	name string
	// rules prints what kube-proxy has written in the node's namespace.
	rules []string
}

var modes = []mode{
	{name: "iptables", rules: []string{"iptables-save", "-t", "nat"}},
	{name: "nftables", rules: []string{"nft", "list", "ruleset"}},
}

// kubeProxyConfig leaves the conntrack sysctls alone: the kernel does not let
// a network namespace change them.
const kubeProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: %s
clusterCIDR: %s
clientConnection:
  kubeconfig: %s
conntrack:
  maxPerCore: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
`

// startKubeProxy runs one on each node of the topology, under the name of a
// node of the cluster, whose Node object it needs.
func startKubeProxy(ctx context.Context, o options, c *cluster, p *plain, m mode) ([]*process, error) {
	var processes []*process
	for i, node := range p.nodes {
		started, err := startOneKubeProxy(ctx, o, c, p, m, node, fmt.Sprintf("node-%d", i+1))
		if err != nil {
			return processes, fmt.Errorf("start kube-proxy: %w", err)
		}
		processes = append(processes, started)
	}
	return processes, nil
}

func startOneKubeProxy(ctx context.Context, o options, c *cluster, p *plain, m mode, node *plainNode, name string) (*process, error) {
	config := filepath.Join(o.report, fmt.Sprintf("kube-proxy-%s-%s.yaml", m.name, name))
	text := fmt.Sprintf(kubeProxyConfig, m.name, name, p.podNetwork(), c.kubeconfig())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(strings.TrimSuffix(config, "yaml") + "log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	return place{netns: node.netns}.start(ctx, command{
		path: filepath.Join(o.bin, "kube-proxy"), args: []string{"--config", config},
		env: []string{"PATH=" + toolPath(o)}, stdout: log, stderr: log,
	})
}

// toolPath is a PATH on which iptables is the legacy one. The other, which
// translates to nftables, needs a kernel with CONFIG_NFT_COMPAT, and would
// make the two modes the same below.
func toolPath(o options) string {
	return filepath.Join(o.report, "path") + ":" + os.Getenv("PATH")
}

// linkLegacyIptables fills the first directory of toolPath.
func linkLegacyIptables(o options) error {
	const program = "/usr/sbin/xtables-legacy-multi"
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("%w; install the Debian package iptables", err)
	}
	dir := filepath.Join(o.report, "path")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			if err := os.Symlink(program, filepath.Join(dir, family+suffix)); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		}
	}
	return nil
}

// checkRules makes sure that it is this mode's rules that translate the
// address, and no other's, and returns how many lines of rules there are.
func checkRules(o options, node *plainNode, m mode, service netip.Addr) (lines int, err error) {
	for _, other := range modes {
		rules, err := printRules(o, node, other)
		if err != nil {
			return 0, err
		}
		names := bytes.Contains(rules, []byte(service.String()))
		switch {
		case other.name == m.name && !names:
			return 0, fmt.Errorf("kube-proxy in %s mode has no rule for %s", m.name, service)
		case other.name != m.name && names:
			return 0, fmt.Errorf("beside kube-proxy in %s mode there are rules of %s for %s", m.name, other.name, service)
		case other.name == m.name:
			lines = bytes.Count(rules, []byte("\n"))
		}
	}
	return lines, nil
}

func printRules(o options, node *plainNode, m mode) ([]byte, error) {
	program := m.rules[0]
	if m.name == "iptables" {
		program = filepath.Join(o.report, "path", program)
	}
	var out []byte
	err := inside(node.netns, func() (err error) {
		out, err = exec.Command(program, m.rules[1:]...).Output()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(m.rules, " "), err)
	}
	return out, nil
}
