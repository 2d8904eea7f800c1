package main

import (
	"testing"

	"github.com/google/pprof/profile"
)

func TestControllersHaveTheirShareOfTheLabelledSamples(t *testing.T) {
	sample := func(part string, n int64) *profile.Sample {
		s := &profile.Sample{Value: []int64{n, n * 10_000_000}}
		if part != "" {
			s.Label = map[string][]string{partLabel: {part}}
		}
		return s
	}
	for _, c := range []struct {
		name    string
		samples []*profile.Sample
		want    float64
	}{
		{"nothing ran", nil, 0},
		{"only the garbage collector ran", []*profile.Sample{sample("", 5)}, 0},
		{"a quarter, whatever the garbage collector took", []*profile.Sample{sample("controllers", 1), sample("server", 2), sample("server", 1), sample("", 10)}, 0.25},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := controllersShare(&profile.Profile{Sample: c.samples}); got != c.want {
				t.Errorf("share is %v, want %v", got, c.want)
			}
		})
	}
}
