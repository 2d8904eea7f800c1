package install

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func config(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	plugin := filepath.Join(dir, "built")
	if err := os.WriteFile(plugin, []byte("binary"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Config{
		Plugin: plugin, BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"),
		Socket: "/run/weft/cni.sock", DelDir: "/var/lib/weft/cni/del",
	}
}

func TestInstallWritesExecutableAndConflist(t *testing.T) {
	c := config(t)
	for range 2 { // safe to repeat
		if err := Install(c); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(c.BinDir, PluginName))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Fatalf("binary: %v %v, want mode 0755", info, err)
	}
	data, err := os.ReadFile(filepath.Join(c.ConfDir, ConflistName))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		CNIVersion, Name string
		Plugins          []struct {
			Type, Socket, DelDir string
			Capabilities         map[string]bool
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.CNIVersion != "1.1.0" || got.Name != "weft" || len(got.Plugins) != 1 {
		t.Fatalf("conflist: %s", data)
	}
	p := got.Plugins[0]
	if p.Type != PluginName || p.Socket != c.Socket || p.DelDir != c.DelDir || !p.Capabilities["portMappings"] {
		t.Errorf("plugin: %s", data)
	}
	leftovers(t, c, 2)
}

func TestRemoveTakesEverythingAwayAndMayBeRepeated(t *testing.T) {
	c := config(t)
	if err := Install(c); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(c); err != nil {
			t.Fatal(err)
		}
	}
	leftovers(t, c, 0)
}

func leftovers(t *testing.T, c Config, want int) {
	t.Helper()
	var names []string
	for _, dir := range []string{c.BinDir, c.ConfDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	if len(names) != want {
		t.Errorf("installed files: %v, want %d", names, want)
	}
}

func TestInstallNamesTheBadField(t *testing.T) {
	c := config(t)
	c.DelDir = "relative"
	if err := Install(c); err == nil || !strings.Contains(err.Error(), "DelDir") {
		t.Errorf("error %v, want it to name DelDir", err)
	}
}
