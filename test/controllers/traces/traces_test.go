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
package traces

import (
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
	ours, theirs func(t *testing.T, c *testcluster.Cluster) []reconcile.Runner
	// create makes the nth variant of the workload.
	create func(w *world, n int)
	// actions are what may happen.
	actions []action
	// pause is how long at least to wait after each of them.
	pause time.Duration
	// nudge, if set, makes controllers look once more at the end.
	nudge func(w *world, n int)
	// describe says what there is.
	describe func(w *world) string
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
}

// waits are chosen so that controllers are sometimes in the middle of
// something, and sometimes all deadlines and back-offs have passed.
var waits = []time.Duration{0, 100 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, time.Minute, 15 * time.Minute}

// sequence is a variant of the workload and what happens to it.
type sequence struct {
	variant int
	steps   []step
}

// draw returns the sequence of a seed.
func (k kind) draw(seed uint64) sequence {
	random := rand.New(rand.NewPCG(seed, 0))
	s := sequence{random.IntN(1000), make([]step, 1+random.IntN(12))}
	for i := range s.steps {
		s.steps[i] = step{k.actions[random.IntN(len(k.actions))], random.IntN(1000), max(k.pause, waits[random.IntN(len(waits))])}
	}
	return s
}

// without is the sequence without its ith step.
func (s sequence) without(i int) sequence {
	return sequence{s.variant, slices.Delete(slices.Clone(s.steps), i, i+1)}
}

// play returns what there is after each step of a sequence on one side, and
// last when nothing happens any more.
func (k kind) play(t *testing.T, side func(*testing.T, *testcluster.Cluster) []reconcile.Runner, s sequence) []string {
	var states []string
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cluster: testcluster.New(t), t: t}
		w.Broken = "broken"
		runners := side(t, w.Cluster)
		w.Nodes(2*time.Second, time.Second)
		w.Run(runners...)
		k.create(w, s.variant)
		w.Pass(10 * time.Second)
		for _, step := range s.steps {
			states = append(states, k.describe(w))
			step.action.do(w, step.n)
			w.Pass(step.wait)
		}
		states = append(states, k.describe(w))
		w.Pass(20 * time.Minute)
		w.collectGarbage()
		if k.nudge != nil {
			k.nudge(w, 0)
		}
		w.Pass(20 * time.Minute)
		states = append(states, k.describe(w))
	})
	return states
}

// attempts is how often a sequence is played before its sides count as
// different: which of several equal pods goes first is up to chance.
const attempts = 12

// differ returns what each side leaves behind, and whether that differs
// however often it is tried.
func (k kind) differ(t *testing.T, s sequence) (ours, theirs []string, differ bool) {
	all := [2]map[string]bool{{}, {}}
	for range attempts {
		ours, theirs = k.play(t, k.ours, s), k.play(t, k.theirs, s)
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

// check plays many sequences.
func check(t *testing.T, k kind) {
	t.Parallel()
	for i := range uint64(*sequences) {
		seed := *firstSeed + i
		s := k.draw(seed)
		if _, _, differ := k.differ(t, s); !differ {
			continue
		}
		s = k.shorten(t, s)
		if ours, theirs, differ := k.differ(t, s); differ {
			t.Errorf("seed %d, variant %d: - upstream, + Weft\n%s", seed, s.variant, story(s.steps, theirs, ours))
		}
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
