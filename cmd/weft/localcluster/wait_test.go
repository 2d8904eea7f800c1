package localcluster

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestANodeIsAliveOnceItsPresentAgentHasReported(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making files in " + runRoot + " needs root")
	}
	n := Node{Cluster: "alivetest", Name: "node-1"}
	if err := os.MkdirAll(n.runDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(n.runDir())) })
	now := time.Now()
	if isAlive(n, now) {
		t.Error("alive without an agent")
	}
	// This very process stands for the agent.
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	record, err := json.Marshal(map[string]any{"pid": os.Getpid(), "startTime": strings.Fields(rest)[19]})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.runDir(), "agent.pid"), record, 0o600); err != nil {
		t.Fatal(err)
	}
	if isAlive(n, now.Add(-time.Minute)) {
		t.Error("alive by the report of the agent before")
	}
	if !isAlive(n, time.Now().Add(time.Second)) {
		t.Error("not alive though its agent has reported")
	}
}
