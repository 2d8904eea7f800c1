// Command bench measures Weft's workload controllers against those of
// upstream's kube-controller-manager, doing the same work.
//
//	bench: users ──────────────► API server ◄── the controllers under test
//	  create and edit objects        │ as weft-server's
//	bench: nodes ──────────────► etcd
//	  bind pods, report them Running or Succeeded, through the API server
//	  with -nodes server
//
//	side      the controllers under test
//	weft      Weft's, in the API server's process, as weft-server runs them
//	apart     Weft's, in a process of their own, clients over the network
//	lifted    upstream's, in a process of their own, without client limits
//	default   upstream's, in a process of their own, as they come
//	floor     none: the pods that controllers have made are made once more, as
//	          fast as the API server takes them, floorParallel at once, by a
//	          client that watches pods, as any controller has to. What lifted
//	          takes to this is about the most that controllers can reach
//
// Every scenario runs several times per side (default once, for its time), each
// time on a fresh API server, started as weft-server starts it, and with
// freshly started controllers; figures are medians. Upstream's
// side is kube-controller-manager's own command with its workload controllers
// enabled. Weft's is everything that controllers.New lists. Pods are bound by
// the simulated nodes and not by a scheduler, so that nothing but the
// controllers differs. What a node writes is the same for all sides, and
// costs an API server more than what a controller writes; so nodes write
// straight into the store, unless told otherwise. CPU time is that of the
// controllers; in the shared process it is told apart by the labels of a CPU
// profile, see control.
//
// Everything runs in a network namespace of its own and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

// stateDir says to the program that it runs in its own network namespace, and
// where it may keep its state.
const stateDir = "WEFT_BENCH_STATE"

// profileFile says to a part where its CPU profile goes.
const profileFile = "WEFT_BENCH_PROFILE"

type options struct {
	scale     float64
	scenarios string
	sides     string
	nodes     string
	rounds    int
	patience  float64
	idle      time.Duration
	timeout   time.Duration
	json      string
	dir       string
	profile   string
	parallel  int
}

func main() {
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run runs one part of the benchmark in this process, or the whole of it.
func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case partAPIServer:
			return runPart(ctx, tuned(runAPIServer), args[1:])
		case partServer:
			return runPart(ctx, tuned(runServer), args[1:])
		case partWeft:
			return tuned(runWeft)(ctx, args[1:])
		case partOurs:
			return runPart(ctx, runOurs, args[1:])
		case partUpstream:
			return runPart(ctx, runUpstream, args[1:])
		}
	}
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if dir := os.Getenv(stateDir); dir != "" {
		return bench(ctx, o, dir)
	}
	return isolate(ctx, o)
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.Float64Var(&o.scale, "scale", 1, "multiplies every number of objects")
	flags.StringVar(&o.scenarios, "scenarios", "", "comma-separated names of the scenarios to run (default: all): "+scenarioNames())
	flags.StringVar(&o.sides, "sides", "weft,lifted,default,floor", "comma-separated sides to run: weft, as weft-server runs it; apart, Weft's controllers in a process of their own; lifted, upstream with its client limits lifted; default, upstream as it is; floor, no controllers, just the same pods, made once more by a client that watches them")
	flags.StringVar(&o.nodes, "nodes", throughStore, "how simulated nodes write about pods: store, straight into the store, so that the machine is the controllers'; or server, through the API server as agents do, which takes most of its time")
	flags.IntVar(&o.rounds, "rounds", 3, "how often to run every scenario on each side but default; figures are medians")
	flags.Float64Var(&o.patience, "patience", 6, "stop waiting for upstream with its default limits after this many times as long as Weft took")
	flags.DurationVar(&o.idle, "idle", time.Minute, "how long to watch the idle server")
	flags.DurationVar(&o.timeout, "timeout", 30*time.Minute, "longest time for one scenario on one side")
	flags.StringVar(&o.json, "json", "", "file for the results as JSON")
	flags.StringVar(&o.dir, "dir", "/dev/shm", "directory of the store; in memory, so that the disk is not measured")
	flags.StringVar(&o.profile, "profile", "", "directory for CPU profiles, named SCENARIO-SIDE-PART.pprof")
	flags.IntVar(&o.parallel, "parallel", 32, "requests that simulated nodes and users have in flight")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "Usage: bench [flags]\n\nCompares Weft's workload controllers with upstream's. Needs root.\n\n")
		flags.PrintDefaults()
		fmt.Fprint(flags.Output(), "\nExamples:\n  bench -scale 0.1\n  bench -scenarios create,jobs -json results.json\n")
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.scale <= 0:
		return o, fmt.Errorf("-scale: must be positive, not %g", o.scale)
	case o.nodes != throughStore && o.nodes != throughServer:
		return o, fmt.Errorf("-nodes: %q must be %s or %s", o.nodes, throughStore, throughServer)
	case o.rounds < 1:
		return o, fmt.Errorf("-rounds: must be at least 1, not %d", o.rounds)
	case o.patience < 1:
		return o, fmt.Errorf("-patience: must be at least 1, not %g", o.patience)
	case o.parallel < 1:
		return o, fmt.Errorf("-parallel: must be at least 1, not %d", o.parallel)
	}
	_, err := chosen(o.scenarios)
	_, sidesErr := chosenSides(o.sides)
	return o, errors.Join(err, sidesErr)
}

// isolate runs the program again in a new network namespace, where every
// address and port is free, and takes its state away when it has ended,
// however it did.
func isolate(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root to make a network namespace: try sudo")
	}
	dir, err := os.MkdirTemp(o.dir, "weft-bench-")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	defer os.RemoveAll(dir)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stateDir+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd.Run()
}

// bench runs the scenarios and prints what came of them.
func bench(ctx context.Context, o options, dir string) error {
	if err := addAddress(); err != nil {
		return err
	}
	scenarios, err := chosen(o.scenarios)
	if err != nil {
		return err
	}
	b := &runner{options: o, dir: dir, progress: newProgress(os.Stdout)}
	results := results{Scale: o.scale, Nodes: o.nodes}
	for _, s := range scenarios {
		if s.idle {
			results.Idle, err = b.idle(ctx, s)
		} else {
			var c comparison
			c, err = b.compare(ctx, s)
			results.Scenarios = append(results.Scenarios, c)
		}
		if err != nil {
			return fmt.Errorf("scenario %s: %w", s.name, err)
		}
	}
	fmt.Println()
	fmt.Print(results.table())
	return save(o.json, results)
}

func save(file string, r results) error {
	if file == "" {
		return nil
	}
	data, err := r.encode()
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

// progress says what happens now: one line that changes on a terminal, a line
// per step elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	last     string
}

func newProgress(out *os.File) *progress {
	info, err := out.Stat()
	return &progress{out: out, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

// step shows what is being done; it is replaced by the next.
func (p *progress) step(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); p.terminal && text != p.last {
		p.last = text
		fmt.Fprintf(p.out, "\r\x1b[K… %s", text)
	}
}

// done leaves a line.
func (p *progress) done(format string, args ...any) {
	start := ""
	if p.terminal {
		start = "\r\x1b[K"
	}
	fmt.Fprintf(p.out, "%s✓ %s\n", start, strings.TrimSpace(fmt.Sprintf(format, args...)))
}
