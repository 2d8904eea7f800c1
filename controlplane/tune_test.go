package controlplane

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sleepInKernel blocks its thread.
func sleepInKernel(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&ts, nil) // may be cut short
}

func TestEveryThreadsTimersMayComeTogether(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, as a server does")
	}
	if err := tuneTimers(); err != nil {
		t.Fatal(err)
	}
	var sleepers sync.WaitGroup // in threads that are made for them
	for range 8 {
		sleepers.Go(func() { sleepInKernel(50 * time.Millisecond) })
	}
	time.Sleep(10 * time.Millisecond)
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		slack, err := os.ReadFile(filepath.Join("/proc", thread.Name(), "timerslack_ns"))
		if got := strings.TrimSpace(string(slack)); err != nil || got != "20000000" {
			t.Errorf("thread %s: %q, %v", thread.Name(), got, err)
		}
	}
	sleepers.Wait()
}
