// Package traces holds Weft's workload controllers against upstream's own. The
// same sequence of what users do and what happens to pods, drawn from a seed,
// is played twice in memory, once for either side, and must leave the same
// objects behind.
//
//	seed ─► []action ─┬─► testcluster + Weft's controllers ─────► text ─┐
//	                  └─► testcluster + upstream's controllers ─► text ─┴─ equal?
//
// The text leaves out what chance decides (names of pods, UIDs, versions) and
// how many steps a controller took (generations, times). A sequence that tells
// the sides apart is shortened before it is reported.
//
// Each kind is played twice: with an API server that does what it is asked, and
// with one that refuses controllers some writes and loses the answers to others
// for a while after everything that happens.
package traces

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"weft.dev/weft/controlplane/controllers/testcluster"
	"weft.dev/weft/controlplane/reconcile"
)

var (
	sequences = flag.Int("sequences", 300, "how many sequences to play per kind")
	firstSeed = flag.Uint64("seed", 1, "seed of the first sequence")
)

func init() {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	klog.SetLogger(logr.Discard())
	// One of the handlers waits until some time after the last error, which
	// may have been in another bubble's future.
	utilruntime.ErrorHandlers = nil
}

// kind is a kind of workload under test.
type kind struct {
	// ours and theirs make the controllers of either side.
	ours, theirs side
	// create makes the nth variant of the workload.
	create func(w *world, n int)
	// actions are what may happen.
	actions []action
	// pause is how long at least to wait after each of them.
	pause time.Duration
	// nudge makes controllers look once more: at the end, and after faults,
	// since upstream's forget about some failures until something makes them look.
	nudge func(w *world, n int)
	// settle is how long after the last action, and after the nudge, something
	// may still happen by itself; 20 minutes if 0.
	settle time.Duration
	// describe says what there is.
	describe func(w *world) string
}

// side makes the controllers of one side.
type side func(t *testing.T, s server) []reconcile.Runner

// server is the API server as controllers see it.
type server struct {
	*testcluster.Cluster
	// Client may be refused what users and nodes are not.
	Client kubernetes.Interface
}

// Env returns what a Weft controller of that name is made from.
func (s server) Env(name string) reconcile.Env {
	env := s.Cluster.Env(name)
	env.Client = s.Client
	return env
}

// action is something that may happen. n chooses among its variants.
type action struct {
	name string
	do   func(w *world, n int)
}

// step is an action of a sequence, and how long to wait after it.
type step struct {
	action action
	n      int
	wait   time.Duration
}

func (s step) String() string { return fmt.Sprintf("%s %d, wait %s", s.action.name, s.n, s.wait) }

// world is one side while a sequence is played.
type world struct {
	*testcluster.Cluster
	t *testing.T
	// nudge is the kind's, nudged counts.
	nudge  func(w *world, n int)
	nudged int
	// faults is nil if the API server does what it is asked.
	faults *faults
	// addresses is how many pods were given one.
	addresses int
	// hashes has the number of every ControllerRevision of a DaemonSet, by hash.
	hashes map[string]int64
}

// client returns what controllers talk to the API server with.
func (w *world) client() kubernetes.Interface {
	if w.faults == nil {
		return w.Client
	}
	return w.Unreliable(w.faults.refuse, w.faults.lose)
}

// while does something and lets time pass. An API server that refuses writes
// does so only for a short while, and then there is time for all retries: what
// happens next must find both sides alike.
func (w *world) while(wait time.Duration, do func()) {
	if w.faults == nil {
		do()
		w.Pass(wait)
	} else {
		w.faults.begin()
		do()
		w.faults.begin()
		w.Pass(recovery)
		w.look()
		w.Pass(10 * time.Second)
	}
	w.collectGarbage()
	synctest.Wait()
}

// look makes controllers look once more.
func (w *world) look() {
	w.nudged++
	w.nudge(w, w.nudged)
}

// waits are chosen so that controllers are sometimes in the middle of
// something, and sometimes all deadlines and back-offs have passed. They are
// crooked so that nothing happens when something else is due, or shortly after:
// pods take whole seconds, and so do deadlines and schedules.
var waits = []time.Duration{
	0, 130 * time.Millisecond, 1770 * time.Millisecond, 3810 * time.Millisecond,
	10790 * time.Millisecond, time.Minute + 870*time.Millisecond, 15*time.Minute + 830*time.Millisecond,
}

// held is longer than Weft's controllers hold back the statuses of ReplicaSets
// and Deployments, on which upstream has acted by then.
const held = 700 * time.Millisecond

// sequence is a variant of the workload and what happens to it.
type sequence struct {
	variant int
	steps   []step
	// faults is the seed of what the API server refuses; 0 is nothing.
	faults uint64
}

// draw returns the sequence of a seed.
func (k kind) draw(seed uint64) sequence {
	random := rand.New(rand.NewPCG(seed, 0))
	s := sequence{variant: random.IntN(1000), steps: make([]step, 1+random.IntN(12))}
	for i := range s.steps {
		s.steps[i] = step{k.actions[random.IntN(len(k.actions))], random.IntN(1000), max(k.pause, waits[random.IntN(len(waits))])}
	}
	return s
}

// without is the sequence without its ith step.
func (s sequence) without(i int) sequence {
	s.steps = slices.Delete(slices.Clone(s.steps), i, i+1)
	return s
}

// play returns what there is after each step of a sequence on one side, and
// last when nothing happens any more.
func (k kind) play(t *testing.T, controllers side, s sequence, attempt uint64) []string {
	var states []string
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cluster: testcluster.New(t), t: t, nudge: k.nudge, faults: newFaults(s.faults, attempt)}
		w.Broken, w.Salt = "broken", 1+attempt
		runners := controllers(t, server{w.Cluster, w.client()})
		w.Nodes(2*time.Second, time.Second)
		w.Run(runners...)
		w.while(10*time.Second, func() { k.create(w, s.variant) })
		for _, step := range s.steps {
			states = append(states, k.describe(w))
			w.while(step.wait+jitter(attempt), func() { step.action.do(w, step.n) })
		}
		states = append(states, k.describe(w))
		settle := cmp.Or(k.settle, 20*time.Minute)
		w.Pass(settle)
		w.collectGarbage()
		w.look()
		w.Pass(settle)
		states = append(states, k.describe(w))
	})
	return states
}

// attempts is how often a sequence is played before its sides count as
// different: which of several equal pods or nodes goes first is up to chance,
// several times in one sequence, and so is which write is refused, and which of
// two things comes first that are due within a second.
const attempts = 60

// jitter is how much longer the waits of an attempt are, up to a second.
func jitter(attempt uint64) time.Duration {
	return time.Duration(attempt) * 170 * time.Millisecond % time.Second
}

// differ returns what each side leaves behind, and whether that differs
// however often it is tried.
func (k kind) differ(t *testing.T, s sequence) (ours, theirs []string, differ bool) {
	all := [2]map[string]bool{{}, {}}
	for attempt := range uint64(attempts) {
		ours, theirs = k.play(t, k.ours, s, attempt), k.play(t, k.theirs, s, attempt)
		all[0][last(ours)], all[1][last(theirs)] = true, true
		for text := range all[0] {
			if all[1][text] {
				return ours, theirs, false
			}
		}
	}
	return ours, theirs, true
}

// shorten drops steps for as long as the rest still tells the sides apart.
func (k kind) shorten(t *testing.T, s sequence) sequence {
	for i := 0; i < len(s.steps); {
		if _, _, differ := k.differ(t, s.without(i)); differ {
			s = s.without(i)
		} else {
			i++
		}
	}
	return s
}

// check plays many sequences, with and without faults.
func check(t *testing.T, k kind) {
	t.Parallel()
	t.Run("healthy", func(t *testing.T) { k.check(t, func(uint64) uint64 { return 0 }) })
	t.Run("refused", func(t *testing.T) { k.check(t, func(seed uint64) uint64 { return max(seed, 1) }) })
}

// check plays a sequence of each seed. faults returns the seed of its faults.
func (k kind) check(t *testing.T, faults func(seed uint64) uint64) {
	for i := range uint64(*sequences) {
		seed := *firstSeed + i
		s := k.draw(seed)
		s.faults = faults(seed)
		ours, theirs, differ := k.differ(t, s)
		if !differ {
			continue
		}
		short := k.shorten(t, s)
		if o, th, differ := k.differ(t, short); differ { // else chance has shortened it too far
			s, ours, theirs = short, o, th
		}
		t.Errorf("seed %d, variant %d: - upstream, + Weft\n%s", seed, s.variant, story(s.steps, theirs, ours))
	}
}

func last(states []string) string { return states[len(states)-1] }

// story tells what happened, and where the sides part.
func story(steps []step, theirs, ours []string) string {
	var b strings.Builder
	for i := range ours {
		switch {
		case theirs[i] != ours[i]:
			b.WriteString(diff(theirs[i], ours[i]))
		case i == len(ours)-1 || theirs[i+1] != ours[i+1]:
			b.WriteString(ours[i])
		}
		if i < len(steps) {
			fmt.Fprintf(&b, "→ %s\n", steps[i])
		} else {
			fmt.Fprintln(&b, "→ long after")
		}
	}
	return b.String()
}

// diff marks the lines that only upstream's (-) or only Weft's (+) result has.
func diff(theirs, ours string) string {
	var b strings.Builder
	count := map[string]int{}
	for line := range strings.Lines(ours) {
		count[line]++
	}
	for line := range strings.Lines(theirs) {
		if count[line] > 0 {
			count[line]--
			b.WriteString("  " + line)
		} else {
			b.WriteString("- " + line)
		}
	}
	for line := range strings.Lines(ours) {
		if count[line] > 0 {
			count[line]--
			b.WriteString("+ " + line)
		}
	}
	return b.String()
}

// upstream is one of upstream's controllers.
type upstream struct {
	name string
	run  func(ctx context.Context)
}

func (u upstream) Name() string { return u.name }

func (u upstream) Run(ctx context.Context) error {
	u.run(ctx)
	return nil
}

// workers is how many keys upstream's controllers work on at once.
const workers = 5

func must[T any](t *testing.T) func(T, error) T { return testcluster.Must[T](t) }
