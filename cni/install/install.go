// Package install puts the weft-cni plugin and its network configuration
// where the container runtime looks for them, and takes them away again.
package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// The names under which the plugin and its configuration are installed.
// Runtimes use the first configuration by name, hence the number.
const (
	PluginName   = "weft-cni"
	ConflistName = "10-weft.conflist"
)

// Config says what to install and where. All paths are absolute.
type Config struct {
	// Plugin is the weft-cni binary to copy; empty installs the
	// configuration alone (the runtime's bin_dirs has the binary already).
	Plugin string
	// BinDir is where the binary goes; required with Plugin.
	BinDir string
	// ConfDir is where the runtime looks for network configurations.
	ConfDir string
	// Socket is the agent's CNI socket, and DelDir where the plugin records
	// DELs while the agent is away.
	Socket string
	DelDir string
}

func (c Config) validate() error {
	for _, p := range []struct{ name, path string }{
		{"Plugin", c.Plugin}, {"BinDir", c.BinDir}, {"ConfDir", c.ConfDir}, {"Socket", c.Socket}, {"DelDir", c.DelDir},
	} {
		optional := c.Plugin == "" && (p.name == "Plugin" || p.name == "BinDir")
		if p.path == "" && optional {
			continue
		}
		if !filepath.IsAbs(p.path) {
			return fmt.Errorf("install CNI plugin: %s: %q is not an absolute path", p.name, p.path)
		}
	}
	return nil
}

// Install writes the binary, then the configuration: a runtime that sees the
// second finds the first. Each file appears whole or not at all, so a runtime
// may be using them meanwhile. It is safe to repeat.
func Install(c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	if c.Plugin != "" {
		if err := installBinary(c.Plugin, c.BinDir); err != nil {
			return fmt.Errorf("install CNI plugin: %w", err)
		}
	}
	conflist, err := conflist(c)
	if err != nil {
		return err
	}
	if err := writeFile(c.ConfDir, ConflistName, 0o644, func(w io.Writer) error {
		_, err := w.Write(conflist)
		return err
	}); err != nil {
		return fmt.Errorf("install CNI configuration: %w", err)
	}
	return nil
}

func installBinary(plugin, binDir string) error {
	src, err := os.Open(plugin)
	if err != nil {
		return err
	}
	defer src.Close()
	return writeFile(binDir, PluginName, 0o755, func(w io.Writer) error {
		_, err := io.Copy(w, src)
		return err
	})
}

// Remove takes away what Install wrote, the configuration first. Files that
// are not there are no error.
func Remove(c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	err := remove(filepath.Join(c.ConfDir, ConflistName))
	if c.Plugin != "" {
		err = errors.Join(err, remove(filepath.Join(c.BinDir, PluginName)))
	}
	return err
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// conflist is the network configuration list (CNI specification 1.1,
// "Configuration format").
func conflist(c Config) ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		Socket       string          `json:"socket"`
		DelDir       string          `json:"delDir"`
		Capabilities map[string]bool `json:"capabilities"`
	}
	data, err := json.MarshalIndent(struct {
		CNIVersion string   `json:"cniVersion"`
		Name       string   `json:"name"`
		Plugins    []plugin `json:"plugins"`
	}{
		CNIVersion: "1.1.0",
		Name:       "weft",
		Plugins: []plugin{{
			Type: PluginName, Socket: c.Socket, DelDir: c.DelDir,
			Capabilities: map[string]bool{"portMappings": true},
		}},
	}, "", "  ")
	return append(data, '\n'), err
}

// writeFile makes dir/name by writing a temporary file beside it and renaming
// that into place: replacing a running binary in place would be ETXTBSY.
func writeFile(dir, name string, mode fs.FileMode, write func(io.Writer) error) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+name+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	if err := errors.Join(write(f), f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, name))
}
