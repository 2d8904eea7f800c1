package main

import (
	"strings"
	"testing"
)

const report = `<testsuites><testsuite>
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"></testcase>
<testcase name="[It] [sig-apps] Deployment rolls [Conformance]" status="passed" time="12.5"></testcase>
<testcase name="[It] [sig-network] DNS answers [Conformance]" status="failed" time="61"><failure message="timed out&#10;details" type="failed">x</failure></testcase>
<testcase name="[It] [sig-apps] Job is another" status="skipped" time="0"><skipped message="x"></skipped></testcase>
<testcase name="[It] [sig-apps] Deployment panics" status="panicked" time="1"><error message="nil map" type="panicked">x</error></testcase>
</testsuite></testsuites>`

func TestSummaryNamesFailuresAndCountsByGroup(t *testing.T) {
	results, err := parseReport(strings.NewReader(report))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	summarize(&out, results)
	const want = `✗ panicked: [sig-apps] Deployment panics (1s) nil map
✗ failed: [sig-network] DNS answers [Conformance] (61s) timed out

  passed  failed  
       1       1  sig-apps
       0       1  sig-network
       1       2  all
`
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
}

func TestProgressPrintsOneLinePerSpec(t *testing.T) {
	for name, chunks := range map[string][]string{
		"in parallel":       {"noise\n• [1.2", "34 seconds]\n", "[sig-apps] one\nmore\n", "• [FAILED] [60.000 seconds]\n[sig-apps] two\n"},
		"one after another": {"[sig-apps] one\nnoise\n• [1.234 seconds]\n---\n[sig-apps] two\n• [FAILED] [60.000 sec", "onds]\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			p := &progress{out: &out}
			for _, chunk := range chunks {
				if _, err := p.Write([]byte(chunk)); err != nil {
					t.Fatal(err)
				}
			}
			if want := "✓    1  1.234s  [sig-apps] one\n✗    2  60.000s  [sig-apps] two\n"; out.String() != want {
				t.Errorf("%q, want %q", out.String(), want)
			}
		})
	}
}

func TestSkipsNeedReasons(t *testing.T) {
	if list, err := parseSkips("# comment\n\nfoo.*bar # needs SCTP\n"); err != nil || len(list) != 1 || list[0] != "foo.*bar" {
		t.Errorf("%q, %v", list, err)
	}
	if _, err := parseSkips("foo\n"); err == nil {
		t.Error("no error for a skip without a reason")
	}
	if _, err := parseSkips(skipFile); err != nil {
		t.Error(err)
	}
}
