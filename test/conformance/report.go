package main

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
)

// result is the outcome of one spec.
type result struct {
	name    string
	status  string // "passed", "failed", "timedout", "panicked", "interrupted" …; skipped ones are left out
	seconds float64
	message string // the first line of the failure
}

func (r result) passed() bool { return r.status == "passed" }

// group is the part of Kubernetes that the spec belongs to: its first word in
// brackets.
func (r result) group() string {
	if match := regexp.MustCompile(`\[(sig-[^\]]+)\]`).FindStringSubmatch(r.name); match != nil {
		return match[1]
	}
	return "other"
}

// readReport reads what Ginkgo writes with --junit-report, without the specs
// that were not selected and without the suite's own nodes.
func readReport(path string) ([]result, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("no report: %w", err)
	}
	defer file.Close()
	return parseReport(file)
}

func parseReport(r io.Reader) ([]result, error) {
	var report struct {
		Suites []struct {
			Cases []struct {
				Name    string  `xml:"name,attr"`
				Status  string  `xml:"status,attr"`
				Time    float64 `xml:"time,attr"`
				Failure struct {
					Message string `xml:"message,attr"`
				} `xml:"failure"`
				Error struct {
					Message string `xml:"message,attr"`
				} `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.NewDecoder(r).Decode(&report); err != nil {
		return nil, fmt.Errorf("read JUnit report: %w", err)
	}
	var list []result
	for _, suite := range report.Suites {
		for _, c := range suite.Cases {
			name, isSpec := strings.CutPrefix(c.Name, "[It] ")
			if c.Status == "skipped" || c.Status == "pending" || !isSpec && c.Status == "passed" {
				continue
			}
			message, _, _ := strings.Cut(strings.TrimSpace(cmp.Or(c.Failure.Message, c.Error.Message)), "\n")
			list = append(list, result{name: name, status: c.Status, seconds: c.Time, message: message})
		}
	}
	slices.SortFunc(list, func(a, b result) int { return strings.Compare(a.name, b.name) })
	return list, nil
}

// summarize prints a line for each failure and a table by group.
func summarize(w io.Writer, results []result) {
	type count struct{ passed, failed int }
	groups, total := map[string]count{}, count{}
	for _, r := range results {
		g := groups[r.group()]
		if r.passed() {
			g.passed++
			total.passed++
		} else {
			g.failed++
			total.failed++
			fmt.Fprintf(w, "✗ %s: %s (%.0fs) %s\n", r.status, r.name, r.seconds, r.message)
		}
		groups[r.group()] = g
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(table, "\npassed\tfailed\t  \n")
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		fmt.Fprintf(table, "%d\t%d\t  %s\n", groups[name].passed, groups[name].failed, name)
	}
	fmt.Fprintf(table, "%d\t%d\t  all\n", total.passed, total.failed)
	table.Flush()
}

// progress prints a line for each spec that Ginkgo says has ended.
type progress struct {
	out     io.Writer
	pending []byte
	named   string   // the last line that named a spec
	head    [][]byte // of a spec that has ended and whose name may follow
	done    int
}

// ended matches the head of a finished spec: "• [12.345 seconds]" and
// "• [FAILED] [12.345 seconds]". Its name is the next line if specs run in
// parallel; else it was named when it began.
var ended = regexp.MustCompile(`^•\s*(?:\[([A-Z ]+)\] )?\[([0-9.]+) seconds\]`)

func (p *progress) Write(data []byte) (int, error) {
	p.pending = append(p.pending, data...)
	for {
		line, rest, found := bytes.Cut(p.pending, []byte("\n"))
		if !found {
			return len(data), nil
		}
		p.line(line)
		p.pending = rest
	}
}

func (p *progress) line(line []byte) {
	if bytes.HasPrefix(line, []byte("[sig-")) {
		p.named = string(line)
	}
	if p.head != nil {
		p.done++
		mark := "✓"
		if len(p.head[1]) > 0 {
			mark = "✗"
		}
		fmt.Fprintf(p.out, "%s %4d  %ss  %s\n", mark, p.done, p.head[2], p.named)
		p.head = nil
	}
	if match := ended.FindSubmatch(line); match != nil {
		p.head = [][]byte{nil, bytes.Clone(match[1]), bytes.Clone(match[2])}
	}
}
