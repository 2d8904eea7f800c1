package main

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestServerKeepsOrClosesAsAsked(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { serveTCP(ends[1]); close(ended) }()
	for range 3 {
		if err := exchange(ends[0], keepOpen); err != nil {
			t.Fatalf("keep open: %v", err)
		}
	}
	if err := exchange(ends[0], closeNow); err != nil {
		t.Fatalf("close now: %v", err)
	}
	<-ended
	if err := exchange(ends[0], keepOpen); err == nil {
		t.Error("an exchange after the close succeeded")
	}
}

func TestSummarize(t *testing.T) {
	times := []time.Duration{4 * time.Microsecond, time.Microsecond, 3 * time.Microsecond, 2 * time.Microsecond}
	got := summarize(times, 1, time.Millisecond, 20*time.Microsecond)
	want := Load{Transactions: 4, Lost: 1, PerSecond: 4000, P50: 3, P99: 4, CPU: 5}
	if got != want {
		t.Errorf("summarize = %+v, want %+v", got, want)
	}
	if got := summarize(nil, 2, time.Second, time.Second); got != (Load{Lost: 2}) {
		t.Errorf("without an answer: %+v", got)
	}
}
