package localcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"weft.dev/weft/agent/cgroup2"
	"weft.dev/weft/cmd/weft/progress"
	"weft.dev/weft/cmd/weft/supervise"
	"weft.dev/weft/controlplane/api"
)

// UpOptions is what a user can ask of Up.
type UpOptions struct {
	Name    string
	Nodes   int    // 0: as many as the cluster has, or 1 for a new one
	Routing string // "vxlan" or "native"; empty: as the cluster has, or vxlan
	BinDir  string // where weft, weft-server, weft-cni, containerd and runc are
	Timeout time.Duration
	Display *progress.Display
}

// Up makes the cluster, or whatever of it is missing, and waits until every
// node is ready.
func Up(ctx context.Context, o UpOptions) (*Cluster, error) {
	if err := checkMachine(o.BinDir); err != nil {
		return nil, err
	}
	if err := CheckName(o.Name); err != nil {
		return nil, err
	}
	held, err := lock(o.Name)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()

	c, err := plan(o)
	if err != nil {
		return nil, err
	}
	steps := []struct {
		what string
		do   func(context.Context, string, func(string)) error
	}{
		{"network", c.upNetwork},
		{"programs", c.upPrograms},
		{"control plane", c.awaitServer},
		{"addresses for load balancers", c.upPool},
		{"nodes", c.awaitNodes},
	}
	for _, step := range steps {
		err := o.Display.Step(step.what, func(say func(string)) error { return step.do(ctx, o.BinDir, say) })
		if err != nil {
			return nil, fmt.Errorf("%s: %w\nlook at the logs in %s, then try again or run: weft down --name %s",
				step.what, err, c.stateDir(), c.Name)
		}
	}
	return c, nil
}

// plan merges what is asked for with the cluster that may exist.
func plan(o UpOptions) (*Cluster, error) {
	if o.Nodes < 0 || o.Nodes > MaxNodes {
		return nil, fmt.Errorf("--nodes %d: a local cluster has 1 to %d nodes", o.Nodes, MaxNodes)
	}
	c, err := Load(o.Name)
	switch {
	case errors.Is(err, ErrNotFound):
		subnet, err := freeSubnet()
		if err != nil {
			return nil, err
		}
		c = &Cluster{Name: o.Name, Nodes: max(o.Nodes, 1), Subnet: subnet, Routing: o.Routing}
		if c.Routing == "" {
			c.Routing = "vxlan"
		}
	case err != nil:
		return nil, err
	case o.Nodes != 0 && o.Nodes < c.Nodes:
		return nil, fmt.Errorf("--nodes %d: cluster %s has %d nodes and does not shrink; run weft down first", o.Nodes, c.Name, c.Nodes)
	case o.Routing != "" && o.Routing != c.Routing:
		return nil, fmt.Errorf("--routing %s: cluster %s uses %s; run weft down first", o.Routing, c.Name, c.Routing)
	default:
		c.Nodes = max(o.Nodes, c.Nodes)
	}
	if c.Routing != "vxlan" && c.Routing != "native" {
		return nil, fmt.Errorf("--routing %q: use vxlan or native", c.Routing)
	}
	return c, c.save()
}

// checkMachine reports what this machine lacks to hold a cluster.
func checkMachine(binDir string) error {
	if os.Geteuid() != 0 {
		return errors.New("a local cluster needs root: run it with sudo")
	}
	var missing []string
	for _, program := range []string{"weft", "weft-server", "weft-cni", "containerd", "containerd-shim-runc-v2", "runc"} {
		if _, err := os.Stat(filepath.Join(binDir, program)); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s has no %s; build them with: make build", binDir, strings.Join(missing, ", "))
	}
	_, err := cgroup2.Root()
	return err
}

func (c *Cluster) upNetwork(_ context.Context, _ string, say func(string)) error {
	if err := c.ensureBPF(); err != nil {
		return err
	}
	if err := c.ensureBridge(); err != nil {
		return err
	}
	for _, node := range c.AllNodes() {
		if err := c.ensureNode(node); err != nil {
			return err
		}
	}
	say(fmt.Sprintf("%d nodes on %s", c.Nodes, c.Subnet))
	return c.ensureLoadBalancerRoute()
}

// ensureBPF mounts the BPF file system where systemd would have.
func (c *Cluster) ensureBPF() error {
	const path = "/sys/fs/bpf"
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("%s: %w (does this kernel have CONFIG_BPF_SYSCALL?)", path, err)
	}
	if fs.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", path, "bpf", 0, "mode=700"); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	c.MountedBPF = true
	return c.save()
}

func (c *Cluster) upPrograms(_ context.Context, binDir string, say func(string)) error {
	var group errgroup.Group
	for _, node := range c.AllNodes() {
		group.Go(func() error { return c.startSupervisor(node, binDir) })
	}
	return group.Wait()
}

// startSupervisor starts the node's supervisor inside the node's namespaces
// and cgroup, unless it runs.
func (c *Cluster) startSupervisor(n Node, binDir string) error {
	if err := n.prepare(binDir); err != nil {
		return err
	}
	if supervise.PID(n.runDir(), "supervisor") != 0 {
		return nil
	}
	spec, err := json.MarshalIndent(c.programs(n, binDir), "", "  ")
	if err != nil {
		return err
	}
	specFile := filepath.Join(n.stateDir(), "programs.json")
	if err := writeFile(specFile, spec, 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(n.logDir(), "supervisor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(binDir, "weft"), "supervise", specFile)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	return n.start(cmd)
}

// prepare makes the node's directories and its runtime's configuration.
func (n Node) prepare(binDir string) error {
	for _, dir := range []string{n.stateDir(), n.runDir(), n.logDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	if err := n.containerd(binDir).Write(); err != nil {
		return err
	}
	return n.writeResolvConf()
}

// writeResolvConf copies the host's resolver configuration, once: from then
// on the file is the user's to edit.
func (n Node) writeResolvConf() error {
	path := filepath.Join(n.stateDir(), "resolv.conf")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeFile(path, text, 0o644)
}

// start starts cmd in the node's network namespace and system cgroup, in a
// session of its own.
func (n Node) start(cmd *exec.Cmd) error {
	cgroup, err := ensureSystemCgroup(n)
	if err != nil {
		return err
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return n.inNetns(func() error { return cmd.Start() })
}

// programs is what the node's supervisor runs.
func (c *Cluster) programs(n Node, binDir string) supervise.Spec {
	runtime := n.containerd(binDir)
	spec := supervise.Spec{RunDir: n.runDir(), LogDir: n.logDir()}
	add := func(name string, stopAfter time.Duration, argv ...string) {
		spec.Programs = append(spec.Programs, supervise.Program{Name: name, Argv: argv, StopAfter: stopAfter})
	}
	add("containerd", 10*time.Second, runtime.Argv()...)
	if n.index == 1 {
		add("server", 20*time.Second, c.serverArgv(n, binDir)...)
	}
	add("agent", 10*time.Second, c.agentArgv(n, binDir)...)
	return spec
}

func (c *Cluster) serverArgv(n Node, binDir string) []string {
	return []string{
		filepath.Join(binDir, "weft"), "server",
		"--state-dir=" + c.serverDir(),
		"--advertise-address=" + n.Addr.String(),
		"--cluster-name=" + c.Name,
		"--tls-san=" + c.hostAddr().String(),
	}
}

func (c *Cluster) agentArgv(n Node, binDir string) []string {
	runtime := n.containerd(binDir)
	return []string{
		filepath.Join(binDir, "weft"), "agent",
		"--node-name=" + n.Name,
		"--node-ip=" + n.Addr.String(),
		"--join-file=" + c.joinFile(),
		"--state-dir=" + n.stateDir(),
		"--run-dir=" + n.runDir(),
		"--pin-dir=" + n.pinDir(),
		"--cgroup=" + n.cgroup(),
		"--runtime-endpoint=unix://" + runtime.Socket(),
		"--cni-conf-dir=" + runtime.CNIConfDir,
		"--resolv-conf=" + filepath.Join(n.stateDir(), "resolv.conf"),
		"--routing=" + c.Routing,
		"--pod-cidr=" + api.DefaultPodCIDR,
		"--service-cidr=" + api.DefaultServiceCIDR,
		"--capacity=" + c.share(measureMachine()),
	}
}

// addrPort is where the API server answers.
func (c *Cluster) addrPort() netip.AddrPort { return netip.AddrPortFrom(c.node(1).Addr, 6443) }
