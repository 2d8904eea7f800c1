package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/clientcmd"
)

// controllerManagerUser is whom upstream's side acts as.
const controllerManagerUser = "system:kube-controller-manager"

// upstreamControllers are what corresponds to Weft's own.
var upstreamControllers = []string{
	"deployment-controller", "replicaset-controller", "replicationcontroller-controller", "statefulset-controller",
	"daemonset-controller", "job-controller", "cronjob-controller",
	"endpoints-controller", "endpointslice-controller", "endpointslice-mirroring-controller",
}

// side is one set of controllers under test.
type side struct {
	name, part string
	args       []string
	// isLimited says that its own limits make it slow, so that it may be
	// stopped before its end.
	isLimited bool
	// isFloor says that there are no controllers.
	isFloor bool
}

// server is the part that runs the API server for this side.
func (s side) server() string {
	if s.part == partWeft {
		return partWeft
	}
	return partAPIServer
}

var (
	weft   = side{name: "weft", part: partWeft}
	apart  = side{name: "apart", part: partOurs}
	lifted = side{name: "lifted", part: partUpstream, args: []string{"--kube-api-qps=100000", "--kube-api-burst=100000"}}
	// limited is as it comes: 20 requests per second and controller, bursts of 30.
	limited = side{name: "default", part: partUpstream, isLimited: true}
	floor   = side{name: "floor", part: partWeft, isFloor: true}

	sides = []side{weft, apart, lifted, floor, limited}
)

// chosenSides returns the sides of a comma-separated list of names, in the
// order of sides.
func chosenSides(list string) ([]side, error) {
	names := strings.Split(list, ",")
	var picked []side
	for _, s := range sides {
		if slices.Contains(names, s.name) {
			picked = append(picked, s)
		}
	}
	if len(picked) != len(names) {
		return nil, fmt.Errorf("-sides: %q must be some of weft, apart, lifted, floor, default", list)
	}
	if picked[0].isFloor {
		return nil, fmt.Errorf("-sides: %q needs weft, apart or lifted too: floor makes their pods again", list)
	}
	return picked, nil
}

// measurement is what one side needed for one scenario.
type measurement struct {
	Side string `json:"side"`
	// Seconds is the time from the first request to the awaited state.
	Seconds float64 `json:"seconds"`
	// Unfinished says why the scenario was stopped before its end; Seconds is
	// the time until then.
	Unfinished string `json:"unfinished,omitempty"`
	// Calls are the controllers' requests by verb and resource.
	Calls map[string]int `json:"calls"`
	// Writes and Reads sum them up, without watches.
	Writes int `json:"writes"`
	Reads  int `json:"reads"`
	// OthersWrites are those that users, and nodes, have sent to the API
	// server, which no controller can spare.
	OthersWrites int `json:"othersWrites"`
	// CPUSeconds is what the controllers used, user and system.
	CPUSeconds float64 `json:"cpuSeconds"`
	// TotalCPUSeconds is what store, API server and controllers used.
	TotalCPUSeconds float64 `json:"totalCPUSeconds"`
	// PeakBytes is the largest resident size of store, API server and
	// controllers together.
	PeakBytes int64 `json:"peakBytes"`
}

// runner runs scenarios.
type runner struct {
	options
	dir      string
	progress *progress
	// made are the pods that controllers have made in a scenario with a floor.
	made []*corev1.Pod
}

// compare runs a scenario on the chosen sides, round by round.
func (b *runner) compare(ctx context.Context, s scenario) (comparison, error) {
	c := comparison{Name: s.name, What: s.what, Pods: s.pods(&world{options: b.options})}
	sides, err := chosenSides(b.sides)
	if err != nil {
		return c, err
	}
	for round := range b.rounds {
		for _, side := range sides {
			if side.isLimited && round > 0 || side.isFloor && !s.hasFloor {
				continue
			}
			var limit time.Duration
			if side.isLimited && len(c.Rounds) > 0 {
				limit = max(time.Duration(c.Rounds[0].Seconds*b.patience*float64(time.Second)), 5*time.Second)
			}
			m, err := b.measure(ctx, s, side, limit)
			if err != nil {
				return c, err
			}
			c.Rounds = append(c.Rounds, m)
		}
	}
	for _, side := range sides {
		if rounds := c.roundsOf(side.name); len(rounds) > 0 {
			c.Sides = append(c.Sides, median(rounds))
		}
	}
	return c, nil
}

// roundsOf returns what the side of that name needed in each round.
func (c comparison) roundsOf(name string) []measurement {
	var rounds []measurement
	for _, m := range c.Rounds {
		if m.Side == name {
			rounds = append(rounds, m)
		}
	}
	return rounds
}

// median returns the median of each figure; the calls are those of the round
// with the median time.
func median(rounds []measurement) measurement {
	m := middle(rounds, func(m measurement) float64 { return m.Seconds })
	m.Writes = middle(rounds, func(m measurement) int { return m.Writes }).Writes
	m.Reads = middle(rounds, func(m measurement) int { return m.Reads }).Reads
	m.OthersWrites = middle(rounds, func(m measurement) int { return m.OthersWrites }).OthersWrites
	m.CPUSeconds = middle(rounds, func(m measurement) float64 { return m.CPUSeconds }).CPUSeconds
	m.TotalCPUSeconds = middle(rounds, func(m measurement) float64 { return m.TotalCPUSeconds }).TotalCPUSeconds
	m.PeakBytes = middle(rounds, func(m measurement) int64 { return m.PeakBytes }).PeakBytes
	return m
}

// middle returns the round with the median of a figure, of an even number of
// rounds the one with the larger.
func middle[T cmp.Ordered](rounds []measurement, figure func(measurement) T) measurement {
	sorted := slices.SortedFunc(slices.Values(rounds), func(a, b measurement) int { return cmp.Compare(figure(a), figure(b)) })
	return sorted[len(sorted)/2]
}

var errPatience = errors.New("took too long")

// measure runs a scenario on one side, and stops it after limit, if that is
// not zero.
func (b *runner) measure(ctx context.Context, s scenario, side side, limit time.Duration) (m measurement, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.timeout, fmt.Errorf("not done after %s", b.timeout))
	defer cancel()
	m.Side = side.name
	title := fmt.Sprintf("%s, %s", s.name, side.name)
	b.progress.step("%s: starting the API server", title)
	dir, err := os.MkdirTemp(b.dir, s.name+"-")
	if err != nil {
		return m, err
	}
	defer os.RemoveAll(dir)
	server, kubeconfig, err := startCluster(ctx, dir, b.profileOf(s, side.name, side.server()), side.server())
	if err != nil {
		return m, err
	}
	defer server.stop()
	w, err := newWorld(ctx, b.options, dir, kubeconfig, s)
	if err != nil {
		return m, err
	}
	if s.prepare != nil {
		if err := b.prepare(ctx, s, w, dir, kubeconfig, side, server); err != nil {
			return m, err
		}
	}
	b.progress.step("%s: starting the controllers", title)
	none := noControllers{insideOf(ctx, dir)}
	controllers, work, ready := underTest(none), none.least(len(b.made)), func(context.Context) error { return none.getReady(b.made) }
	if !side.isFloor {
		work, ready = s.work, w.warm
		if controllers, err = b.startControllers(ctx, dir, kubeconfig, s, side); err != nil {
			return m, err
		}
	}
	defer controllers.stop()
	w.alive = func() error { return errors.Join(server.alive(), controllers.alive()) }
	if err := ready(ctx); err != nil {
		return m, fmt.Errorf("%s: %w\n%s", side.name, err, controllers.tail())
	}
	before, err := observe(ctx, w, server, controllers)
	if err != nil {
		return m, err
	}
	m.Unfinished, err = b.perform(ctx, work, w, title, limit)
	m.Seconds = time.Since(before.at).Seconds()
	if err != nil {
		return m, fmt.Errorf("%s: %w\n%s", side.name, err, controllers.tail())
	}
	patience := longestSettling
	if m.Unfinished != "" {
		patience = 0
	}
	after, err := settle(ctx, w, server, controllers, patience)
	if err != nil {
		return m, err
	}
	m.fill(before, after)
	if s.hasFloor && !side.isFloor {
		made, _ := w.pods.List(labels.Everything()) // reads a cache: no error
		b.made = asCreated(made)
	}
	b.progress.done("%s: %s", title, m)
	return m, w.fleet.err()
}

// prepare does what comes before the measured work, with controllers that are
// not limited, so that the limited side does not take hours for it.
func (b *runner) prepare(ctx context.Context, s scenario, w *world, dir, kubeconfig string, side side, server *process) error {
	if side.isLimited {
		side = lifted
	}
	controllers, err := b.startControllers(ctx, dir, kubeconfig, s, side)
	if err != nil {
		return err
	}
	defer controllers.stop()
	w.alive = func() error { return errors.Join(server.alive(), controllers.alive()) }
	w.report = func(what string, have, want int) {
		b.progress.step("%s: preparing: %d of %d %s", s.name, have, want, what)
	}
	if err := s.prepare(ctx, w); err != nil {
		return fmt.Errorf("prepare: %w\n%s", err, controllers.tail())
	}
	return nil
}

// perform does the scenario's work. It returns how far it came if limit has
// ended it.
func (b *runner) perform(ctx context.Context, work func(context.Context, *world) error, w *world, title string, limit time.Duration) (unfinished string, err error) {
	begin := time.Now()
	last := ""
	w.report = func(what string, have, want int) {
		last = fmt.Sprintf("%d of %d %s", have, want, what)
		b.progress.step("%s: %s (%ds)", title, last, int(time.Since(begin).Seconds()))
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errPatience)
		defer cancel()
	}
	err = work(ctx, w)
	if err != nil && errors.Is(context.Cause(ctx), errPatience) {
		return last, nil
	}
	return "", err
}

// profileOf is the file for the CPU profile of a part, "" if none is wanted.
func (b *runner) profileOf(s scenario, side, part string) string {
	if b.profile == "" {
		return ""
	}
	return filepath.Join(b.profile, strings.Join([]string{s.name, side, part}, "-")+".pprof")
}

// underTest are controllers that run, in a process of their own or not.
type underTest interface {
	// alive returns an error if they have ended.
	alive() error
	// tail is the end of their log.
	tail() string
	// cpu returns how long they have run on a processor.
	cpu() (time.Duration, error)
	// peakMemory returns the largest resident size of their own process so
	// far, in bytes; 0 if they have none.
	peakMemory() (int64, error)
	stop()
}

// startControllers starts the controllers under test.
func (b *runner) startControllers(ctx context.Context, dir, kubeconfig string, s scenario, side side) (underTest, error) {
	if side.part == partWeft {
		return startInside(ctx, dir)
	}
	profile := b.profileOf(s, side.name, side.part)
	if side.part == partOurs {
		return start(dir, profile, side.part, "-kubeconfig", kubeconfig)
	}
	kubeconfig, err := asControllerManager(kubeconfig)
	if err != nil {
		return nil, err
	}
	return start(dir, profile, side.part, append([]string{
		"--kubeconfig=" + kubeconfig, "--controllers=" + strings.Join(upstreamControllers, ","),
		"--leader-elect=false", "--secure-port=0",
	}, side.args...)...)
}

// asControllerManager returns a kubeconfig that acts as kube-controller-manager,
// as Weft's controllers act as service accounts: neither is exempt from the
// API server's priority and fairness.
func asControllerManager(admin string) (string, error) {
	cfg, err := clientcmd.LoadFromFile(admin)
	if err != nil {
		return "", err
	}
	for _, user := range cfg.AuthInfos {
		user.Impersonate = controllerManagerUser
		user.ImpersonateGroups = []string{"system:authenticated"}
	}
	file := admin + ".upstream"
	return file, clientcmd.WriteToFile(*cfg, file)
}

// state is what has been used up to a moment.
type state struct {
	at            time.Time
	calls         calls
	others        calls
	cpu, totalCPU time.Duration
	peak          int64
}

func observe(ctx context.Context, w *world, server *process, controllers underTest) (state, error) {
	var s state
	all, err := served(ctx, w.client)
	if err != nil {
		return s, err
	}
	s.others = w.sent.snapshot()
	s.calls = all.minus(s.others)
	cpu, err1 := controllers.cpu()
	serverCPU, err2 := server.cpu()
	peak, err3 := controllers.peakMemory()
	serverPeak, err4 := server.peakMemory()
	s.at, s.cpu, s.totalCPU, s.peak = time.Now(), cpu, serverCPU, serverPeak+peak
	if peak > 0 { // a process of their own
		s.totalCPU += cpu
	}
	return s, errors.Join(err1, err2, err3, err4)
}

// longestSettling is how long controllers may go on writing when the work is
// done: events are far behind it on a busy server.
const longestSettling = 2 * time.Minute

// settle waits until the controllers have written nothing for a second, or for
// as long as patience says, so that what they do late counts too.
func settle(ctx context.Context, w *world, server *process, controllers underTest, patience time.Duration) (state, error) {
	begin := time.Now()
	last, err := observe(ctx, w, server, controllers)
	for time.Since(begin) < patience {
		if err != nil {
			return last, err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return last, ctx.Err()
		}
		var next state
		next, err = observe(ctx, w, server, controllers)
		if err == nil && next.calls.writes() == last.calls.writes() {
			return next, nil
		}
		last = next
	}
	return last, err
}

func (m *measurement) fill(before, after state) {
	used := after.calls.minus(before.calls)
	m.Calls = map[string]int{}
	for k, n := range used {
		m.Calls[k.Verb+" "+k.Resource] = n
	}
	m.Writes, m.Reads = used.writes(), used.reads()
	m.OthersWrites = after.others.writes() - before.others.writes()
	m.CPUSeconds = (after.cpu - before.cpu).Seconds()
	m.TotalCPUSeconds = (after.totalCPU - before.totalCPU).Seconds()
	m.PeakBytes = after.peak
}

// String is the measurement on one line.
func (m measurement) String() string {
	end := ""
	if m.Unfinished != "" {
		end = ", stopped at " + m.Unfinished
	}
	return fmt.Sprintf("%.1f s, %d writes, %d reads, %.2f s of CPU, %d MiB%s", m.Seconds, m.Writes, m.Reads, m.CPUSeconds, m.PeakBytes>>20, end)
}

// idle measures a whole server that has nothing to do.
func (b *runner) idle(ctx context.Context, s scenario) (*idleness, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.timeout, fmt.Errorf("not done after %s", b.timeout))
	defer cancel()
	dir, err := os.MkdirTemp(b.dir, s.name+"-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b.progress.step("%s: starting weft-server", s.name)
	server, kubeconfig, err := startCluster(ctx, dir, b.profileOf(s, weft.name, partServer), partServer)
	if err != nil {
		return nil, err
	}
	defer server.stop()
	w, err := newWorld(ctx, b.options, dir, kubeconfig, s)
	if err != nil {
		return nil, err
	}
	w.alive = server.alive
	w.report = func(what string, have, want int) {
		b.progress.step("%s: preparing: %d of %d %s", s.name, have, want, what)
	}
	if err := s.prepare(ctx, w); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, server.tail())
	}
	b.progress.step("%s: waiting until nothing happens any more", s.name)
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	wait(b.options.idle / 4)
	before, err := server.cpu()
	if err != nil {
		return nil, err
	}
	b.progress.step("%s: watching for %s", s.name, b.options.idle)
	wait(b.options.idle)
	after, err := server.cpu()
	if err != nil {
		return nil, err
	}
	peak, err := server.peakMemory()
	i := &idleness{
		Deployments: w.scaled(1000), Seconds: b.options.idle.Seconds(),
		CoreShare: (after - before).Seconds() / b.options.idle.Seconds(), PeakBytes: peak,
	}
	b.progress.done("%s: %s", s.name, i)
	return i, errors.Join(err, ctx.Err())
}
