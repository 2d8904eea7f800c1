package main

import (
	"testing"
	"time"
)

func TestProcessorTimeIsUserAndSystemTime(t *testing.T) {
	const stat = "42 (a (strange) name) S 1 2 3 4 5 6 7 8 9 10 150 25 16 17 18"
	got, err := parseCPU([]byte(stat))
	if want := 1750 * time.Millisecond; err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	if _, err := parseCPU([]byte("42 (short) S 1")); err == nil {
		t.Error("a line that is cut off is accepted")
	}
}

func TestPeakMemoryIsTheHighWaterMark(t *testing.T) {
	got, err := parsePeak("Name:\tbench\nVmPeak:\t  9000 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n")
	if err != nil || got != 2<<20 {
		t.Errorf("got %d bytes, %v", got, err)
	}
	if _, err := parsePeak("Name:\tbench\n"); err == nil {
		t.Error("a status without it is accepted")
	}
}
