package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"weft.dev/weft/agent/desired"
	"weft.dev/weft/agent/join"
	"weft.dev/weft/controlplane/api"
	"weft.dev/weft/dataplane"
)

// Config is what a node's agent needs to know. The zero value is not valid;
// start from Defaults.
type Config struct {
	// NodeName is the name of the Node object.
	NodeName string
	// NodeIPs are the addresses other nodes reach this one by, the first of
	// each family first. Required.
	NodeIPs []string
	Labels  map[string]string
	MaxPods int32
	// Capacity overrides what is measured of the machine, quantities by
	// resource: a node that is not alone on its machine claims its share.
	Capacity map[string]string
	// EvictionHard is what must remain available, by signal as kubelet calls
	// them: memory.available a quantity, the others a percentage.
	EvictionHard map[string]string
	// PodPIDs limits the processes of each pod; 0 is no limit.
	PodPIDs int64

	// JoinFile is a file as the server writes it (join.json), waited for if it
	// is not there yet; or else Server, Token and one of CAFile and CAHash are
	// set. Token is needed for the first start only.
	JoinFile                      string
	Server, Token, CAFile, CAHash string

	StateDir, RunDir, PinDir string
	// Cgroup is the node's cgroup below the root of every hierarchy.
	Cgroup string
	// RuntimeEndpoint is the CRI socket, unix:///PATH.
	RuntimeEndpoint string
	// CNIConfDir is where the runtime reads its network configuration.
	CNIConfDir string
	ResolvConf string
	// SandboxArchive holds the image of the infrastructure container; it is
	// imported when the runtime lacks it.
	SandboxArchive string

	Routing       string
	PodCIDRs      []string
	ServiceCIDRs  []string
	ClusterDNS    []string
	ClusterDomain string

	// Version is Weft's own.
	Version string
}

// Defaults is the configuration of a machine with one node.
func Defaults() Config {
	name, _ := os.Hostname() // without a name, --node-name is asked for
	return Config{
		NodeName:        name,
		MaxPods:         110,
		StateDir:        "/var/lib/weft/node",
		RunDir:          "/run/weft/node",
		PinDir:          "/sys/fs/bpf/weft/node",
		Cgroup:          "/",
		RuntimeEndpoint: "unix:///run/weft/node/containerd.sock",
		CNIConfDir:      "/var/lib/weft/node/cni/net.d",
		ResolvConf:      "/etc/resolv.conf",
		Routing:         string(dataplane.VXLAN),
		PodCIDRs:        []string{api.DefaultPodCIDR},
		ServiceCIDRs:    []string{api.DefaultServiceCIDR},
		ClusterDNS:      []string{api.DefaultClusterDNS},
		ClusterDomain:   api.DefaultClusterDomain,
	}
}

// capacity reads Capacity.
func (c Config) capacity() (corev1.ResourceList, error) {
	list := corev1.ResourceList{}
	var errs []error
	for name, text := range c.Capacity {
		quantity, err := resource.ParseQuantity(text)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("--capacity %s=%s: %w", name, text, err))
		case quantity.Sign() < 0:
			errs = append(errs, fmt.Errorf("--capacity %s=%s: is negative", name, text))
		}
		list[corev1.ResourceName(name)] = quantity
	}
	return list, errors.Join(errs...)
}

// parse reads the addresses of the configuration and reports every field that
// cannot work, by the name of its flag.
func (c Config) parse() (desired.Settings, error) {
	s := desired.Settings{NodeName: c.NodeName, DNSPort: api.DNSPort}
	var errs []error
	if c.NodeName == "" {
		errs = append(errs, errors.New("--node-name: must be set, this machine has no host name"))
	}
	if len(c.NodeIPs) == 0 {
		errs = append(errs, errors.New("--node-ip: must be set"))
	}
	for flag, dir := range map[string]string{
		"--state-dir": c.StateDir, "--run-dir": c.RunDir, "--pin-dir": c.PinDir, "--cgroup": c.Cgroup, "--cni-conf-dir": c.CNIConfDir,
	} {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", flag, dir))
		}
	}
	if c.Routing != string(dataplane.VXLAN) && c.Routing != string(dataplane.Native) {
		errs = append(errs, fmt.Errorf("--routing: %q is neither vxlan nor native", c.Routing))
	}
	if c.PodPIDs < 0 {
		errs = append(errs, fmt.Errorf("--pod-pids: %d is negative", c.PodPIDs))
	}
	_, err := c.capacity()
	errs = append(errs, err)
	_, err = c.thresholds()
	errs = append(errs, err)
	s.NodeAddresses = parseEach("--node-ip", c.NodeIPs, netip.ParseAddr, &errs)
	s.ClusterDNS = parseEach("--cluster-dns", c.ClusterDNS, netip.ParseAddr, &errs)
	s.ClusterCIDRs = parseEach("--pod-cidr", c.PodCIDRs, netip.ParsePrefix, &errs)
	s.ServiceCIDRs = parseEach("--service-cidr", c.ServiceCIDRs, netip.ParsePrefix, &errs)
	return s, errors.Join(errs...)
}

func parseEach[T any](flag string, texts []string, parse func(string) (T, error), errs *[]error) (values []T) {
	for _, text := range texts {
		value, err := parse(text)
		if err != nil {
			*errs = append(*errs, fmt.Errorf("%s: %w", flag, err))
		}
		values = append(values, value)
	}
	return values
}

// ticket is how this node joins: from the flags, or from the join file, which
// is waited for.
func (c Config) ticket(ctx context.Context) (join.Config, error) {
	ticket := join.Config{
		NodeName: c.NodeName, Dir: c.identityDir(),
		Server: c.Server, Token: c.Token, CAFile: c.CAFile, CAHash: c.CAHash,
	}
	if c.JoinFile == "" {
		return ticket, nil
	}
	var file struct {
		Server string `json:"server"`
		CAFile string `json:"caFile"`
		CAHash string `json:"caHash"`
		Token  string `json:"token"`
	}
	text, err := awaitFile(ctx, c.JoinFile)
	if err == nil {
		err = json.Unmarshal(text, &file)
	}
	if err != nil {
		return ticket, fmt.Errorf("--join-file: %w", err)
	}
	ticket.Server, ticket.Token, ticket.CAHash = file.Server, file.Token, file.CAHash
	// On the server's own machine its file is at hand; elsewhere the hash tells.
	if _, err := os.Stat(file.CAFile); err == nil {
		ticket.CAFile = file.CAFile
	}
	return ticket, nil
}

func awaitFile(ctx context.Context, path string) ([]byte, error) {
	for logged := false; ; {
		text, err := os.ReadFile(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return text, err
		}
		if !logged {
			slog.Info("waiting for the server to write the join file", "file", path)
			logged = true
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
