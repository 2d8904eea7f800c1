package supervise

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 500 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never happened: %s", what)
}

func sleeper(t *testing.T) Spec {
	dir := t.TempDir()
	return Spec{RunDir: dir, LogDir: dir, Programs: []Program{
		{Name: "sleeper", Argv: []string{"/bin/sleep", "1000"}, StopAfter: time.Second},
	}}
}

func run(t *testing.T, spec Spec) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, spec) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestAKilledProgramIsStartedAgainAndStopsWithTheSupervisor(t *testing.T) {
	spec := sleeper(t)
	stop := run(t, spec)
	eventually(t, "start", func() bool { return PID(spec.RunDir, "sleeper") != 0 })
	first := PID(spec.RunDir, "sleeper")

	process, err := os.FindProcess(first)
	if err != nil {
		t.Fatal(err)
	}
	process.Kill()
	eventually(t, "restart", func() bool {
		pid := PID(spec.RunDir, "sleeper")
		return pid != 0 && pid != first
	})
	stop()
	if pid := PID(spec.RunDir, "sleeper"); pid != 0 {
		t.Errorf("program still runs as %d", pid)
	}
}

func TestARunningProgramIsTakenOverNotRestarted(t *testing.T) {
	spec := sleeper(t)
	orphan := exec.Command("/bin/sleep", "1000")
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	go orphan.Wait()
	if err := record(filepath.Join(spec.RunDir, "sleeper.pid"), orphan.Process.Pid); err != nil {
		t.Fatal(err)
	}
	stop := run(t, spec)
	time.Sleep(50 * time.Millisecond)
	if pid := PID(spec.RunDir, "sleeper"); pid != orphan.Process.Pid {
		t.Errorf("pid is %d, want the orphan's %d", pid, orphan.Process.Pid)
	}
	stop()
	eventually(t, "the orphan stops with its new supervisor", func() bool {
		_, err := startTime(orphan.Process.Pid)
		return err != nil
	})
}

func TestAPidFileOfAnotherProcessIsNotBelieved(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.pid")
	text := []byte(`{"pid":1,"startTime":"never"}`)
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := adopt(file); err != errNotRunning {
		t.Errorf("error %v, want errNotRunning", err)
	}
}
