package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

func TestSlowStartStopsAfterTheFirstBatchThatFails(t *testing.T) {
	cases := []struct {
		name              string
		n, failAt         int
		wantCalls, wantOK int
	}{
		{"all succeed", 10, -1, 10, 10},
		{"the first call fails: nothing else is tried", 100, 0, 1, 0},
		{"a call of the second batch fails: the batch is finished", 100, 1, 3, 2},
		{"a call of the last, shorter batch fails", 5, 4, 5, 4},
		{"nothing to do", 0, -1, 0, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var calls atomic.Int32
			ok, err := SlowStart(t.Context(), c.n, func(_ context.Context, i int) error {
				calls.Add(1)
				if i == c.failAt {
					return errors.New("no")
				}
				return nil
			})
			if int(calls.Load()) != c.wantCalls || ok != c.wantOK || (err != nil) != (c.failAt >= 0) {
				t.Errorf("%d calls, %d succeeded, error %v; want %d, %d", calls.Load(), ok, err, c.wantCalls, c.wantOK)
			}
		})
	}
}

type storeAt string

func (s *storeAt) LastStoreSyncResourceVersion() string { return string(*s) }

func TestFenceWaitsForTheNewestOwnWrite(t *testing.T) {
	var fence Fence
	pods, sets := storeAt("100"), storeAt("100")
	a, b := types.NamespacedName{Name: "a"}, types.NamespacedName{Name: "b"}
	fence.Wrote(a, &pods, "105")
	fence.Wrote(a, &pods, "103") // answers may overtake each other
	fence.Wrote(a, &sets, "99")

	steps := []struct {
		pods  storeAt
		stale bool
	}{{"100", true}, {"104", true}, {"99999", false}, {"0", false}}
	for _, step := range steps {
		pods = step.pods
		if err := fence.Check(a); errors.Is(err, ErrStale) != step.stale {
			t.Errorf("cache at %s: %v", pods, err)
		}
		if err := fence.Check(b); err != nil {
			t.Errorf("another owner waits too: %v", err)
		}
	}
}

func TestDeletionIsFinalBeforeTheCacheShowsIt(t *testing.T) {
	var deletions Deletions
	owner := types.NamespacedName{Name: "o"}
	now := time.Now()
	stale := []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{UID: "1"}}, {ObjectMeta: metav1.ObjectMeta{UID: "2"}}}
	deletions.Sent(owner, "2")
	for range 2 { // until the cache changes
		seen := deletions.Overlay(owner, stale, now)
		if IsTerminating(seen[0]) || !IsTerminating(seen[1]) {
			t.Errorf("terminating: %v %v", IsTerminating(seen[0]), IsTerminating(seen[1]))
		}
	}
	if stale[1].DeletionTimestamp != nil {
		t.Error("the cached pod was modified")
	}
	deletions.Overlay(owner, stale[:1], now)
	if len(deletions.sent) != 0 {
		t.Errorf("remembered although the cache caught up: %v", deletions.sent)
	}
}

func TestClaim(t *testing.T) {
	owner := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "owner", UID: "me"}}
	kind := corev1.SchemeGroupVersion.WithKind("Pod")
	object := func(label string, controller types.UID) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "p", Labels: map[string]string{"app": label}}}
		if controller != "" {
			p.OwnerReferences = []metav1.OwnerReference{{UID: controller, Controller: new(true)}}
		}
		return p
	}
	deleting := func(p *corev1.Pod) *corev1.Pod {
		p = p.DeepCopy()
		p.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		return p
	}
	named := func(p *corev1.Pod, name string) *corev1.Pod {
		p.Name = name
		return p
	}
	replaced := owner.DeepCopy()
	replaced.UID = "another"
	gone := &corev1.Pod{}
	adopt := `{"metadata":{"uid":"p","ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"owner","uid":"me","controller":true,"blockOwnerDeletion":true}]}}`
	release := `{"metadata":{"uid":"p","ownerReferences":[{"$patch":"delete","uid":"me"}]}}`

	cases := []struct {
		name        string
		owner, live *corev1.Pod
		object      *corev1.Pod
		mine        bool
		patch       string
		fails       bool
	}{
		{"keeps what is its own", owner, owner, object("web", "me"), true, "", false},
		{"keeps its own while being deleted", deleting(owner), nil, object("web", "me"), true, "", false},
		{"adopts a matching orphan", owner, owner, object("web", ""), true, adopt, false},
		{"leaves an orphan that does not match", owner, owner, object("db", ""), false, "", false},
		{"leaves an orphan that is being deleted", owner, owner, deleting(object("web", "")), false, "", false},
		{"leaves what another controls", owner, owner, object("web", "other"), false, "", false},
		{"leaves an orphan that it does not accept", owner, owner, named(object("web", ""), "stranger"), false, "", false},
		{"releases what it does not accept", owner, owner, named(object("web", "me"), "stranger"), false, release, false},
		{"releases what no longer matches", owner, owner, object("db", "me"), false, release, false},
		{"releases nothing while being deleted", deleting(owner), nil, object("db", "me"), false, "", false},
		{"adopts nothing while being deleted", deleting(owner), nil, object("web", ""), false, "", false},
		{"adopts nothing if it is in truth being deleted", owner, deleting(owner), object("web", ""), false, "", true},
		{"adopts nothing if it was in truth replaced", owner, replaced, object("web", ""), false, "", true},
		{"adopts nothing, and does not go on, if it is in truth gone", owner, gone, object("web", ""), false, "", true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			patch := ""
			mine, err := Claim(t.Context(), Claimant{
				Object: c.owner, Kind: kind,
				Selector: labels.SelectorFromSet(labels.Set{"app": "web"}),
				Accepts:  func(object metav1.Object) bool { return object.GetName() != "stranger" },
				Live: func(context.Context) (metav1.Object, error) {
					if c.live == nil {
						return nil, errors.New("must not be read")
					}
					if c.live == gone {
						return nil, apierrors.NewNotFound(corev1.Resource("pods"), "owner")
					}
					return c.live, nil
				},
			}, []*corev1.Pod{c.object}, func(_ context.Context, _ *corev1.Pod, data []byte) error {
				patch = string(data)
				return nil
			})
			if (len(mine) == 1) != c.mine || patch != c.patch || (err != nil) != c.fails {
				t.Errorf("mine %v, error %v, patch %s", len(mine) == 1, err, patch)
			}
		})
	}
}

func TestLoopRetriesWithBackOffAndSurvivesPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries []time.Duration
		start := time.Now()
		loop := NewLoop(Config{Name: "test", Reconcile: func(context.Context, types.NamespacedName) error {
			tries = append(tries, time.Since(start))
			switch len(tries) {
			case 1:
				return errors.New("once")
			case 2:
				panic("twice")
			case 3:
				return fmt.Errorf("cache: %w", ErrStale)
			}
			return nil
		}})
		loop.AddAfter(types.NamespacedName{Name: "x"}, time.Hour)
		loop.Add(types.NamespacedName{Name: "x"})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- loop.Run(ctx) }()
		time.Sleep(2 * time.Hour)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := "[0s 5ms 15ms 1.015s]" // an hour is forgotten for what came before
		if got := fmt.Sprint(tries); got != want {
			t.Errorf("tried at %s, want %s", got, want)
		}
	})
}

func TestBurstDuringASlowRun(t *testing.T) {
	for name, test := range map[string]struct {
		fold bool
		want string
	}{
		"is folded into one where that is asked for":    {true, "[0s 100ms]"},
		"is worked on without rest where haste matters": {false, "[0s 20ms 40ms 60ms]"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if got := runsInABurst(t, test.fold); got != test.want {
					t.Errorf("it ran at %s, want %s", got, test.want)
				}
			})
		})
	}
}

// runsInABurst adds a key fifty times, a millisecond apart, and returns when
// it was worked on; each run takes 20 ms.
func runsInABurst(t *testing.T, fold bool) string {
	var began []time.Duration
	start := time.Now()
	loop := NewLoop(Config{Name: "test", Workers: 4, FoldBursts: fold, Reconcile: func(context.Context, types.NamespacedName) error {
		began = append(began, time.Since(start))
		time.Sleep(20 * time.Millisecond) // a write
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- loop.Run(ctx) }()
	time.Sleep(time.Second)
	start = time.Now()
	for range 50 {
		loop.Add(types.NamespacedName{Name: "x"})
		time.Sleep(time.Millisecond)
	}
	time.Sleep(time.Second)
	synctest.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	return fmt.Sprint(began)
}

func TestRestFollowsTheLengthOfTheRun(t *testing.T) {
	cases := []struct {
		name      string
		run, want time.Duration
	}{
		{"nothing was written", 100 * time.Microsecond, 0},
		{"one write to an idle API server", 5 * time.Millisecond, 20 * time.Millisecond},
		{"one write to a busy API server", 30 * time.Millisecond, 70 * time.Millisecond},
		{"dozens of pods created", 4 * time.Second, 0},
	}
	for _, c := range cases {
		if got := restAfter(c.run); got != c.want {
			t.Errorf("%s: rests %s, want %s", c.name, got, c.want)
		}
	}
}
