package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
)

// results is one run.
type results struct {
	Scale float64 `json:"scale"`
	// Nodes is how simulated nodes write: throughStore or throughServer.
	Nodes     string       `json:"nodes"`
	Scenarios []comparison `json:"scenarios"`
	Idle      *idleness    `json:"idle,omitempty"`
}

// comparison is one scenario on all sides.
type comparison struct {
	Name string `json:"name"`
	What string `json:"what"`
	Pods int    `json:"pods"`
	// Rounds are all measurements, Sides their medians.
	Rounds []measurement `json:"rounds"`
	Sides  []measurement `json:"sides"`
}

// idleness is what a server with nothing to do costs.
type idleness struct {
	Deployments int     `json:"deployments"`
	Seconds     float64 `json:"seconds"`
	// CoreShare is the part of one processor core, 1 for all of it.
	CoreShare float64 `json:"coreShare"`
	PeakBytes int64   `json:"peakBytes"`
}

func (i *idleness) String() string {
	return fmt.Sprintf("%d idle Deployments cost the server %.1f %% of one core (peak memory %d MiB)", i.Deployments, i.CoreShare*100, i.PeakBytes>>20)
}

func (r results) encode() ([]byte, error) {
	data, err := json.MarshalIndent(r, "", "  ")
	return append(data, '\n'), err
}

// Goals of the comparison.
const (
	fasterThanLimited = 5
	fasterThanLifted  = 1.5
	cpuOfLifted       = 0.6
	idleCoreShare     = 0.02
)

// table is the results for people: what each side used, the ratios, and which
// goals are met.
func (r results) table() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "scenario\tside\ttime\twrites\twrites/pod\tothers\treads\tCPU\ttotal CPU\tmemory\t\n")
	for _, c := range r.Scenarios {
		for _, m := range c.Sides {
			fmt.Fprintf(w, "%s\t%s\t%s s\t%d\t%.2f\t%d\t%d\t%.2f s\t%.1f s\t%d MiB\t\n", c.Name, m.Side,
				m.time(), m.Writes, float64(m.Writes)/float64(c.Pods), m.OthersWrites, m.Reads, m.CPUSeconds, m.TotalCPUSeconds, m.PeakBytes>>20)
		}
	}
	w.Flush()
	b.WriteString(map[string]string{
		throughStore:  "Simulated nodes write straight into the store; others are the API server's writes for users. ",
		throughServer: "Simulated nodes write through the API server; others are its writes for them and for users. ",
	}[r.Nodes])
	b.WriteString("CPU is that of the controllers alone; total CPU and memory include store and API server.\n" +
		"\nHow many times faster Weft is, and what part of upstream's CPU, writes and memory it uses:\n")
	w = tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "scenario\tdefault limits\tlimits lifted\tat most\tCPU\ttotal CPU\twrites\tmemory\t\n")
	for _, c := range r.Scenarios {
		ours, lifted, limited := c.side("weft"), c.side("lifted"), c.side("default")
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", c.Name,
			ours.fasterThan(limited, fasterThanLimited), ours.fasterThan(lifted, fasterThanLifted), c.atMost(),
			part(ours.CPUSeconds, lifted.CPUSeconds, cpuOfLifted), part(ours.TotalCPUSeconds, lifted.TotalCPUSeconds, 1),
			part(float64(ours.Writes), float64(lifted.Writes), 1),
			part(float64(ours.PeakBytes), float64(lifted.PeakBytes), 1))
	}
	w.Flush()
	fmt.Fprintf(&b, "Goals: faster than default limits ≥ %d ×, than lifted limits ≥ %.1f ×; CPU ≤ %.1f, all else ≤ 1. ✗ marks what misses its goal.\n"+
		"At most: how many times faster than lifted limits the same pods are made, watched and reported with no controllers at all.\n",
		fasterThanLimited, fasterThanLifted, cpuOfLifted)
	if r.Idle != nil {
		fmt.Fprintf(&b, "Idle: %s; goal ≤ %.0f %% %s\n", r.Idle, idleCoreShare*100, mark(r.Idle.CoreShare <= idleCoreShare))
	}
	return b.String()
}

// side returns what the side of that name needed; nothing if it did not run.
func (c comparison) side(name string) measurement {
	for _, m := range c.Sides {
		if m.Side == name {
			return m
		}
	}
	return measurement{}
}

// atMost is about how many times faster than upstream controllers could be.
func (c comparison) atMost() string {
	lifted, floor := c.side("lifted"), c.side("floor")
	if lifted.Seconds == 0 || floor.Seconds == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f ×", lifted.Seconds/floor.Seconds)
}

func (m measurement) time() string {
	if m.Unfinished != "" {
		return fmt.Sprintf("> %.1f", m.Seconds)
	}
	return fmt.Sprintf("%.1f", m.Seconds)
}

func mark(met bool) string {
	if met {
		return "✓"
	}
	return "✗"
}

// fasterThan compares times. A side that was stopped before its end is slower
// by more than the ratio says.
func (m measurement) fasterThan(other measurement, goal float64) string {
	if m.Seconds == 0 || other.Seconds == 0 {
		return "–"
	}
	ratio := other.Seconds / m.Seconds
	more := ""
	if other.Unfinished != "" {
		more = "> "
	}
	return fmt.Sprintf("%s%.2f × %s", more, ratio, mark(ratio >= goal))
}

// part is what part of the other's use ours is.
func part(ours, others, goal float64) string {
	if ours == 0 || others == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f %s", ours/others, mark(ours/others <= goal))
}
