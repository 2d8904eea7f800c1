// Package containerd prepares a node's private container runtime: it renders
// containerd's configuration so that every path belongs to this node, which
// lets several nodes share one machine, and leaves a containerd that the
// host itself runs alone.
//
//	Config ──Render──► config.toml ──► containerd (a process that outlives the agent)
//
// Supervision is not here: systemd does it on a real node, the local
// cluster's supervisor on one machine.
package containerd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/template"
)

// SandboxImage is the image of the infrastructure container; it is imported,
// never pulled.
const SandboxImage = "registry.weft.local/pause:1"

// maxSocketPath is the longest path of a Unix socket (sun_path in
// include/uapi/linux/un.h, less the final NUL).
const maxSocketPath = 107

// shimSocketName is the length of the name containerd's shims give their
// sockets: a SHA-256 sum in hexadecimal, and a slash before it.
const shimSocketName = 65

// Config is where one node's containerd lives. All paths are absolute.
type Config struct {
	// StateDir holds what must survive a reboot: images, snapshots, metadata.
	StateDir string
	// RunDir holds sockets and the state of running containers.
	RunDir string
	// BinDir has containerd-shim-runc-v2, runc and weft-cni.
	BinDir string
	// CNIConfDir is where the agent installs its network configuration.
	CNIConfDir string
	// RegistryDir holds a hosts.toml per registry (containerd's certs.d).
	RegistryDir string
}

// Socket is the address of the runtime's gRPC API, CRI included.
func (c Config) Socket() string { return filepath.Join(c.RunDir, "containerd.sock") }

// File is where Write puts the configuration.
func (c Config) File() string { return filepath.Join(c.StateDir, "containerd.toml") }

// Argv is the command that runs the runtime under this configuration.
func (c Config) Argv() []string {
	return []string{filepath.Join(c.BinDir, "containerd"), "--config", c.File()}
}

// Validate reports the first field that cannot work, by name.
func (c Config) Validate() error {
	for name, path := range map[string]string{
		"StateDir": c.StateDir, "RunDir": c.RunDir, "BinDir": c.BinDir,
		"CNIConfDir": c.CNIConfDir, "RegistryDir": c.RegistryDir,
	} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("containerd %s: %q is not an absolute path", name, path)
		}
	}
	if n := len(c.shimDir()) + shimSocketName; n > maxSocketPath {
		return fmt.Errorf("containerd RunDir: %q makes shim socket paths of %d bytes; a Unix socket path has at most %d",
			c.RunDir, n, maxSocketPath)
	}
	return nil
}

func (c Config) shimDir() string { return filepath.Join(c.RunDir, "s") }

// Render returns the configuration file, in containerd's format version 3.
func (c Config) Render() ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err := file.Execute(&out, struct {
		Config
		Socket, ShimDir, SandboxImage string
	}{c, c.Socket(), c.shimDir(), SandboxImage})
	return out.Bytes(), err
}

// Write renders the configuration to File and makes the directories it names.
func (c Config) Write() error {
	text, err := c.Render()
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range []string{c.StateDir, c.RunDir, c.shimDir(), c.CNIConfDir, c.RegistryDir} {
		errs = append(errs, os.MkdirAll(dir, 0o711))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("make containerd's directories: %w", err)
	}
	next := c.File() + ".next"
	if err := os.WriteFile(next, text, 0o644); err != nil {
		return fmt.Errorf("write containerd configuration: %w", err)
	}
	return os.Rename(next, c.File())
}

// file is the template of config.toml. restrict_oom_score_adj lets containerd
// start where the kernel refuses to lower a score; netns_mounts_under_state_dir
// keeps pod namespaces out of the shared /run/netns.
var file = template.Must(template.New("config.toml").Parse(`version = 3
root = "{{.StateDir}}/containerd"
state = "{{.RunDir}}/containerd"
temp = "{{.StateDir}}/containerd-tmp"
imports = []
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.differ.v1.erofs",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "{{.Socket}}"
[ttrpc]
  address = "{{.Socket}}.ttrpc"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{{.SandboxImage}}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{{.RegistryDir}}"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = "{{.BinDir}}/containerd-shim-runc-v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{{.BinDir}}/runc"
      Root = "{{.RunDir}}/runc"
      SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{{.BinDir}}"]
    conf_dir = "{{.CNIConfDir}}"
    use_internal_loopback = true

[plugins."io.containerd.nri.v1.nri"]
  socket_path = "{{.RunDir}}/nri.sock"
  plugin_path = "{{.StateDir}}/nri/plugins"
  plugin_config_path = "{{.StateDir}}/nri/conf.d"

[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "{{.ShimDir}}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{{.StateDir}}/opt"
`))
