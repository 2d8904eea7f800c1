// Package localcluster makes a whole cluster on one machine: every node is a
// network namespace, a cgroup, a containerd and an agent of its own, joined by
// a bridge on which the host has an address too.
//
//	host ── bridge 172.30.K.1 ─┬─ netns node-1: weft-server, containerd, weft agent, pods
//	                           └─ netns node-2: containerd, weft agent, pods
//
// It starts the programs and does not link them. Everything it makes carries
// the cluster's name, so Down finds and removes all of it even when every
// process was killed.
package localcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/agent/containerd"
)

// Where local clusters live on the machine.
const (
	stateRoot = "/var/lib/weft"
	runRoot   = "/run/weft"
	pinRoot   = "/sys/fs/bpf/weft"
	netnsRoot = "/run/netns"
)

// DefaultName is the cluster that commands mean when none is named.
const DefaultName = "default"

// MaxNodes is the most nodes one local cluster can have.
const MaxNodes = 32

// ErrNotFound says that no cluster has the given name.
var ErrNotFound = errors.New("no such cluster")

// Cluster is what Up was asked for; it is kept in the state directory.
type Cluster struct {
	Name    string       `json:"name"`
	Nodes   int          `json:"nodes"`
	Subnet  netip.Prefix `json:"subnet"`
	Routing string       `json:"routing"`
	// MountedBPF says that this cluster mounted /sys/fs/bpf, and takes it away.
	MountedBPF bool `json:"mountedBPF,omitempty"`
}

// Node is one node of a cluster and where its parts are.
type Node struct {
	Cluster string
	Name    string
	Addr    netip.Addr
	index   int
}

// validName is short because device names have 15 bytes (IFNAMSIZ).
var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?$`)

// CheckName reports why a cluster cannot have the given name.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("--name %q: use 1 to 10 lower-case letters, digits or dashes, not a dash at either end", name)
	}
	return nil
}

// Load returns the cluster of that name, or ErrNotFound.
func Load(name string) (*Cluster, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(stateRoot, name, "cluster.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s (make it with: weft up --name %s)", ErrNotFound, name, name)
	}
	if err != nil {
		return nil, err
	}
	c := &Cluster{}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	return c, nil
}

func (c *Cluster) save() error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.stateDir(), 0o711); err != nil {
		return err
	}
	return writeFile(filepath.Join(c.stateDir(), "cluster.json"), append(text, '\n'), 0o644)
}

func (c *Cluster) stateDir() string  { return filepath.Join(stateRoot, c.Name) }
func (c *Cluster) runDir() string    { return filepath.Join(runRoot, c.Name) }
func (c *Cluster) pinDir() string    { return filepath.Join(pinRoot, c.Name) }
func (c *Cluster) serverDir() string { return filepath.Join(c.stateDir(), "server") }
func (c *Cluster) bridge() string    { return "weft-" + c.Name }

// joinFile is written by the server and read by the agents.
func (c *Cluster) joinFile() string { return filepath.Join(c.serverDir(), "join.json") }

// Kubeconfig is the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.serverDir(), "admin.kubeconfig") }

// hostAddr is the host's own address on the bridge.
func (c *Cluster) hostAddr() netip.Addr { return c.Subnet.Addr().Next() }

// AllNodes returns the nodes in order.
func (c *Cluster) AllNodes() []Node {
	nodes := make([]Node, c.Nodes)
	for i := range nodes {
		nodes[i] = c.node(i + 1)
	}
	return nodes
}

// FindNode returns the node of that name, or an error that lists the names.
func (c *Cluster) FindNode(name string) (Node, error) {
	for _, node := range c.AllNodes() {
		if node.Name == name {
			return node, nil
		}
	}
	return Node{}, fmt.Errorf("cluster %s has no node %q; it has node-1 to node-%d", c.Name, name, c.Nodes)
}

func (c *Cluster) node(index int) Node {
	addr := c.Subnet.Addr().As4()
	addr[3] += byte(10 + index)
	return Node{Cluster: c.Name, Name: fmt.Sprintf("node-%d", index), Addr: netip.AddrFrom4(addr), index: index}
}

func (n Node) stateDir() string  { return filepath.Join(stateRoot, n.Cluster, "nodes", n.Name) }
func (n Node) runDir() string    { return filepath.Join(runRoot, n.Cluster, n.Name) }
func (n Node) pinDir() string    { return filepath.Join(pinRoot, n.Cluster, n.Name) }
func (n Node) logDir() string    { return filepath.Join(n.stateDir(), "log") }
func (n Node) netns() string     { return "weft-" + n.Cluster + "-" + n.Name }
func (n Node) netnsPath() string { return filepath.Join(netnsRoot, n.netns()) }
func (n Node) hostDevice() string {
	return fmt.Sprintf("w-%s-%d", n.Cluster, n.index)
}

// cgroup is the node's path below the root of any cgroup hierarchy.
func (n Node) cgroup() string { return filepath.Join("/weft", n.Cluster, n.Name) }

func (n Node) containerd(binDir string) containerd.Config {
	return containerd.Config{
		StateDir:    n.stateDir(),
		RunDir:      n.runDir(),
		BinDir:      binDir,
		CNIConfDir:  filepath.Join(n.stateDir(), "cni", "net.d"),
		RegistryDir: filepath.Join(n.stateDir(), "certs.d"),
	}
}

// lock keeps two commands from changing one cluster at a time; unlock by
// closing the file.
func lock(name string) (*os.File, error) {
	if err := os.MkdirAll(runRoot, 0o711); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(runRoot, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for range 600 {
		if err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return file, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, errors.Join(fmt.Errorf("cluster %s: another weft command is changing it: %w", name, err), file.Close())
}

// writeFile replaces a file atomically.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	if err := os.WriteFile(path+".next", content, mode); err != nil {
		return err
	}
	return os.Rename(path+".next", path)
}
