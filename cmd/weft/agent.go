package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"weft.dev/weft/agent"
)

func agentCommand() *cobra.Command {
	c := agent.Defaults()
	c.Version = version
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run this machine as a node: pods, network, DNS and ingress",
		Long: "Run this machine as a node: pods, network, DNS and ingress.\n\n" +
			"The first start joins the cluster with a bootstrap token; later starts use the certificate\n" +
			"that was issued then. The container runtime must run already; see agent/containerd.",
		Example: `  weft agent --node-ip 192.0.2.11 --join-file join.json
  weft agent --node-ip 192.0.2.11 --server https://192.0.2.10:6443 --token abcdef.0123456789abcdef --ca-hash sha256:...`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&c.NodeName, "node-name", c.NodeName, "name of the Node object")
	flags.StringSliceVar(&c.NodeIPs, "node-ip", nil, "addresses of this node that others reach it by, the first of each family first (required)")
	flags.StringVar(&c.JoinFile, "join-file", "", "file that the server wrote for nodes to join with; waited for if it is not there yet")
	flags.StringVar(&c.Server, "server", "", "URL of the API server, instead of --join-file")
	flags.StringVar(&c.Token, "token", "", "bootstrap token, instead of --join-file")
	flags.StringVar(&c.CAFile, "ca-file", "", "certificate of the cluster's authority, instead of --join-file")
	flags.StringVar(&c.CAHash, "ca-hash", "", "sha256 hash of that certificate's public key, instead of --ca-file")
	flags.StringVar(&c.StateDir, "state-dir", c.StateDir, "directory for what must survive a reboot")
	flags.StringVar(&c.RunDir, "run-dir", c.RunDir, "directory for sockets")
	flags.StringVar(&c.PinDir, "pin-dir", c.PinDir, "directory on a BPF file system for pinned maps and links")
	flags.StringVar(&c.Cgroup, "cgroup", c.Cgroup, "cgroup of this node, below the root of every hierarchy")
	flags.StringVar(&c.RuntimeEndpoint, "runtime-endpoint", c.RuntimeEndpoint, "CRI socket of the container runtime")
	flags.StringVar(&c.CNIConfDir, "cni-conf-dir", c.CNIConfDir, "directory the runtime reads its network configuration from")
	flags.StringVar(&c.ResolvConf, "resolv-conf", c.ResolvConf, "resolver configuration of this node")
	flags.StringVar(&c.Routing, "routing", c.Routing, "how packets reach other nodes: vxlan or native")
	flags.StringSliceVar(&c.PodCIDRs, "pod-cidr", c.PodCIDRs, "prefixes of all pods of the cluster")
	flags.StringSliceVar(&c.ServiceCIDRs, "service-cidr", c.ServiceCIDRs, "prefixes of all ClusterIPs")
	flags.StringSliceVar(&c.ClusterDNS, "cluster-dns", c.ClusterDNS, "addresses pods ask for names")
	flags.StringVar(&c.ClusterDomain, "cluster-domain", c.ClusterDomain, "domain of the cluster's names")
	flags.StringToStringVar(&c.Labels, "node-label", nil, "labels to register the node with")
	flags.Int32Var(&c.MaxPods, "max-pods", c.MaxPods, "most pods on this node")
	flags.StringToStringVar(&c.Capacity, "capacity", nil, "what the node claims of the machine, where that is not all: cpu=2,memory=4Gi,ephemeral-storage=20Gi")
	flags.StringToStringVar(&c.EvictionHard, "eviction-hard", nil, "what must remain available, else pods are evicted (default memory.available=100Mi,nodefs.available=10%,nodefs.inodesFree=5%,pid.available=5%)")
	flags.Int64Var(&c.PodPIDs, "pod-pids", 0, "most processes of each pod; 0 is no limit")
	cmd.MarkFlagRequired("node-ip")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, err := binDir()
		if err != nil {
			return err
		}
		c.SandboxArchive = filepath.Join(dir, "images", "pause.tar")
		return agent.Run(cmd.Context(), c)
	}
	return cmd
}
