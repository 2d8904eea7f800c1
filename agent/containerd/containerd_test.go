package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func config(dir string) Config {
	return Config{
		StateDir:    dir + "/state",
		RunDir:      dir + "/run",
		BinDir:      "/opt/weft/bin",
		CNIConfDir:  dir + "/state/cni/net.d",
		RegistryDir: dir + "/state/certs.d",
	}
}

// Two nodes on one machine must not meet in a path of containerd.
func TestEveryPathBelongsToTheNode(t *testing.T) {
	text, err := config("/node").Render()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, found := strings.Cut(line, "= \"/")
		if !found || strings.Contains(name, "runtime_path") || strings.Contains(name, "BinaryName") {
			continue
		}
		if !strings.HasPrefix(value, "node/") {
			t.Errorf("not below the node's directories: %s", line)
		}
	}
}

func TestConfigIsRefusedByTheNameOfItsField(t *testing.T) {
	tests := map[string]struct {
		break_ func(*Config)
		want   string
	}{
		"a relative path": {func(c *Config) { c.BinDir = "bin" }, "BinDir"},
		"a missing path":  {func(c *Config) { c.StateDir = "" }, "StateDir"},
		"a run directory too long for shim sockets": {
			func(c *Config) { c.RunDir = "/run/" + strings.Repeat("x", 60) }, "RunDir"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := config("/node")
			test.break_(&c)
			if _, err := c.Render(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v does not name %s", err, test.want)
			}
		})
	}
}

func TestWriteMakesTheDirectoriesAndMayBeRepeated(t *testing.T) {
	c := config(t.TempDir())
	if len(c.shimDir())+shimSocketName > maxSocketPath {
		c.RunDir = filepath.Join(os.TempDir(), "weft-containerd-test")
		t.Cleanup(func() { os.RemoveAll(c.RunDir) })
	}
	for range 2 {
		if err := c.Write(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(c.CNIConfDir); err != nil {
		t.Error(err)
	}
}
