package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// Results is everything one run has found; it is saved as JSON.
type Results struct {
	Machine  string         `json:"machine"`
	Began    time.Time      `json:"began"`
	Took     time.Duration  `json:"tookNanoseconds"`
	Rounds   int            `json:"rounds"`
	Duration time.Duration  `json:"durationNanoseconds"`
	Services int            `json:"idleServices"`
	Rules    map[string]int `json:"kubeProxyRuleLines"`
	Network  []Series       `json:"network"`
	CNI      CNITimes       `json:"cni"`
	PodStart PodTimes       `json:"podStart"`
}

// Series is one test over one path, in every round.
type Series struct {
	Test string `json:"test"`
	path
	Rounds []Load `json:"rounds"`
}

// Spread is what several measurements of one thing say.
type Spread struct{ Median, Min, Max float64 }

// spread summarizes values; an even number has the mean of both in the middle.
func spread(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return Spread{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Min: sorted[0], Max: sorted[n-1]}
}

// spreadOf summarizes one figure of each of several measurements.
func spreadOf[T any](list []T, figure func(T) float64) Spread {
	var values []float64
	for _, each := range list {
		values = append(values, figure(each))
	}
	return spread(values)
}

// of summarizes one figure of every round.
func (s Series) of(figure func(Load) float64) Spread { return spreadOf(s.Rounds, figure) }

func perSecond(l Load) float64 { return l.PerSecond }
func p50(l Load) float64       { return l.P50 }
func p99(l Load) float64       { return l.P99 }
func cpu(l Load) float64       { return l.CPU }

// Print shows the results as tables.
func (r *Results) Print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n%d rounds of %s, interleaved; medians (smallest to largest)\n", r.Machine, r.Rounds, r.Duration)
	fmt.Fprintf(w, "%d idle Services; rules of kube-proxy on a client's node: %d lines of iptables, %d of nftables\n",
		r.Services, r.Rules["iptables"], r.Rules["nftables"])
	for _, test := range tests {
		for _, distance := range distances {
			printNetwork(w, test, distance, r.Network)
		}
	}
	r.CNI.print(w)
	r.PodStart.print(w)
	fmt.Fprintf(w, "\nTook %s.\n", r.Took.Round(time.Second))
}

var titles = map[string]string{
	tcpRR:  "TCP request/response",
	udpRR:  "UDP request/response",
	tcpCRR: "TCP connect, request, response, close",
}

// printNetwork is the table of one test at one distance. The last columns
// compare Weft's ClusterIP with each row: how many times the transactions, and
// how many times less time and processor time for one. More is better for Weft.
func printNetwork(out io.Writer, test, distance string, all []Series) {
	var rows []Series
	var weft Series
	for _, s := range all {
		if s.Test != test || s.Distance != distance {
			continue
		}
		rows = append(rows, s)
		if s.Network == "weft" && s.Target == clusterIP {
			weft = s
		}
	}
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(out, "\n%s, backend on the %s\n", titles[test], distance)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\tper second\t\tp50 µs\t\tp99 µs\tCPU µs\tWeft's ClusterIP: rate\tp50\tCPU\t\n")
	for _, s := range rows {
		rate, typical := s.of(perSecond), s.of(p50)
		fmt.Fprintf(w, "%s\t%.0f\t(%.0f to %.0f)\t%.1f\t(%.1f to %.1f)\t%.1f\t%.1f\t%.2f ×\t%.2f ×\t%.2f ×\t\n", s.title(),
			rate.Median, rate.Min, rate.Max, typical.Median, typical.Min, typical.Max, s.of(p99).Median, s.of(cpu).Median,
			weft.of(perSecond).Median/rate.Median, typical.Median/weft.of(p50).Median, s.of(cpu).Median/weft.of(cpu).Median)
	}
	w.Flush()
	for _, s := range rows {
		lost := 0
		for _, load := range s.Rounds {
			lost += load.Lost
		}
		if lost > 0 {
			fmt.Fprintf(out, "%s: %d datagrams had no answer within %s\n", s.title(), lost, datagramTimeout)
		}
	}
}

func (s Series) title() string {
	network := "Weft"
	if s.Network != "weft" {
		network = "veth, kube-proxy " + s.Network
	}
	return network + ", " + s.Target
}

// Save writes the results as JSON.
func (r *Results) Save(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Printf("All figures are in %s.\n", file)
	return nil
}

// describeMachine names what the figures depend on most.
func describeMachine() string {
	cpu := "unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	var uname unix.Utsname
	kernel := "unknown kernel"
	if unix.Uname(&uname) == nil {
		kernel = "Linux " + unix.ByteSliceToString(uname.Release[:])
	}
	return fmt.Sprintf("%d CPUs (%s), %s", runtime.NumCPU(), cpu, kernel)
}

// printTimes prints rows of durations in milliseconds. The first row is the
// one that the others are compared with.
func printTimes(out io.Writer, title string, rows []timesRow) {
	fmt.Fprintf(out, "\n%s\n", title)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\tmedian ms\t\tshare\t\n")
	whole := spread(rows[0].values).Median
	for _, row := range rows {
		s := spread(row.values)
		fmt.Fprintf(w, "%s\t%.1f\t(%.1f to %.1f)\t%.2f ×\t\n", row.what, s.Median, s.Min, s.Max, s.Median/whole)
	}
	w.Flush()
}

type timesRow struct {
	what   string
	values []float64
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
