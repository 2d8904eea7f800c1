package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestPluginIsSmallAndStartsFast: runtimes execute the plugin several times
// per pod, so its budget is 6 MB and 10 ms.
func TestPluginIsSmallAndStartsFast(t *testing.T) {
	const maxBytes, maxStart = 6 << 20, 10 * time.Millisecond
	plugin := filepath.Join(t.TempDir(), "weft-cni")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", plugin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	info, err := os.Stat(plugin)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxBytes {
		t.Errorf("%d bytes, want at most %d", info.Size(), maxBytes)
	}
	best := time.Hour
	for range 20 { // the best of several: others use the machine, too
		run := exec.Command(plugin)
		run.Env = []string{"CNI_COMMAND=VERSION"}
		begin := time.Now()
		if err := run.Run(); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(begin))
	}
	t.Logf("%d bytes, %s", info.Size(), best)
	if best > maxStart {
		t.Errorf("starts in %s, want at most %s", best, maxStart)
	}
}
