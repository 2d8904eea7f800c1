// Command bench measures Weft against plain pods and against kube-proxy, side
// by side in one run:
//
//	bench -bin bin
//
// It makes a local cluster of two nodes and, on the same bridge, two more
// pairs of nodes that Weft has no part in: network namespaces whose pods hang
// on plain veth pairs, joined by VXLAN as in the cluster, with kube-proxy in
// iptables mode on one pair and in nftables mode on the other. All of them
// serve the same Services of the same API server.
//
//	host ── bridge ─┬─ cluster  node-1: client, server │ node-2: server     eBPF
//	                ├─ iptables node-1: client, server │ node-2: server     veth, VXLAN, kube-proxy
//	                └─ nftables node-1: client, server │ node-2: server     veth, VXLAN, kube-proxy
//
// Client and server are this program, started in the pods' network namespaces
// (and, in the cluster, in the pods' cgroups, where Weft's socket programs
// are); no container runtime is between them in any of the three. Each round
// visits every path once, in a new order, so that what else the machine does
// meets all of them.
//
// Then, on the cluster alone: the time of a CNI ADD and its parts, and of a
// pod from its creation to Ready, next to the CRI calls that it takes.
//
// Whatever it made is gone when it ends, also when it is killed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"weft.dev/weft/cmd/weft/progress"
)

type options struct {
	bin, name, report string
	rounds            int
	duration          time.Duration
	adds, pods        int
	services          int
	only              *regexp.Regexp
}

func (o options) weft() string { return filepath.Join(o.bin, "weft") }

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	if len(os.Args) > 1 {
		if run := subcommands[os.Args[1]]; run != nil {
			if err := run(os.Args[2:]); err != nil {
				log.Fatal(err)
			}
			return
		}
	}
	o, err := parse()
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err = run(ctx, o)
	if ctx.Err() != nil {
		log.Fatal("stopped by a signal")
	}
	if err != nil {
		log.Fatal(err)
	}
}

// subcommands are what this program starts of itself.
var subcommands = map[string]func(args []string) error{
	"serve":   serveMain,
	"load":    loadMain,
	"cleanup": cleanupMain,
}

func parse() (options, error) {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of weft and the other programs")
	flag.StringVar(&o.name, "name", "bench", "name of the local cluster to make; it must not exist")
	flag.StringVar(&o.report, "report", "", "directory for results.json and the logs (default BIN/bench)")
	flag.IntVar(&o.rounds, "rounds", 11, "how often to measure every path")
	flag.DurationVar(&o.duration, "duration", 300*time.Millisecond, "how long to load a path in each round")
	flag.IntVar(&o.adds, "adds", 40, "how many CNI ADDs to time")
	flag.IntVar(&o.pods, "pods", 15, "how many pods to time")
	flag.IntVar(&o.services, "services", 0, "how many idle Services to add, for the tables of all three")
	only := flag.String("only", "", "regular expression for the network measurements to make, such as 'UDP_RR weft .* other node'")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), `Measures Weft against plain pods and against kube-proxy in iptables and nftables
mode on the same topology, CNI ADD, and pod start. Needs root.

Examples:
  bench -bin bin                            everything, four minutes on a quiet machine
  bench -bin bin -rounds 2 -duration 200ms  a quick look
  bench -bin bin -services 1000             with 1000 more Services in the tables

Flags:
`)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; see bench -help", flag.Arg(0))
	}
	for name, n := range map[string]int{"rounds": o.rounds, "adds": o.adds, "pods": o.pods} {
		if n < 1 {
			return o, fmt.Errorf("-%s %d: use at least 1", name, n)
		}
	}
	if o.services < 0 || o.services > 10000 {
		return o, fmt.Errorf("-services %d: use 0 to 10000", o.services)
	}
	if o.duration < 50*time.Millisecond {
		return o, fmt.Errorf("-duration %v: use at least 50ms", o.duration)
	}
	if os.Geteuid() != 0 {
		return o, errors.New("needs root, to make network namespaces: run it with sudo")
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return o, err
	}
	if o.report == "" {
		o.report = filepath.Join(o.bin, "bench")
	}
	o.report, err = filepath.Abs(o.report)
	return o, err
}

// run makes everything, measures, reports, and removes everything.
func run(ctx context.Context, o options) (err error) {
	if err := os.MkdirAll(o.report, 0o755); err != nil {
		return err
	}
	display := progress.New(os.Stderr)
	guard, err := startGuard(o)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, display.Step("remove the cluster", func(func(string)) error { return guard.end() }))
	}()
	results := Results{Machine: describeMachine(), Began: time.Now(), Rounds: o.rounds, Duration: o.duration, Services: o.services}
	if err := measure(ctx, o, display, &results); err != nil {
		return err
	}
	results.Took = time.Since(results.Began)
	results.Print(os.Stdout)
	return results.Save(filepath.Join(o.report, "results.json"))
}

// measure fills results, one kind of measurement after another.
func measure(ctx context.Context, o options, display *progress.Display, results *Results) error {
	var c *cluster
	if err := display.Step("cluster of two nodes", func(func(string)) (err error) {
		c, err = startCluster(ctx, o)
		return err
	}); err != nil {
		return err
	}
	if err := measureNetwork(ctx, o, c, display, results); err != nil {
		return err
	}
	if err := display.Step("CNI ADD", func(say func(string)) (err error) {
		results.CNI, err = measureCNI(ctx, o, c, say)
		return err
	}); err != nil {
		return err
	}
	return display.Step("pod start", func(say func(string)) (err error) {
		results.PodStart, err = measurePods(ctx, o, c, say)
		return err
	})
}
