package daemonset

import (
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestBackoffDoublesPerNode(t *testing.T) {
	var b backoff
	key, ds, clock := types.NamespacedName{Name: "a"}, agent(), now
	wait := func(node string) time.Duration { return b.waits(key, ds, clock)[node] }
	if got := wait("n"); got != 0 {
		t.Errorf("waits %v before the first failure", got)
	}
	for _, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		b.replaced(key, ds, "n", clock)
		if got := wait("n"); got != want {
			t.Errorf("waits %v, want %v", got, want)
		}
		if got := wait("m"); got != 0 {
			t.Errorf("another node waits %v", got)
		}
		clock = clock.Add(want)
	}
	if got := wait("n"); got != 0 {
		t.Errorf("still waits %v when the time is over", got)
	}
	for range 20 {
		b.replaced(key, ds, "n", clock)
	}
	if got := wait("n"); got != longestWait {
		t.Errorf("waits %v, want at most %v", got, longestWait)
	}
}

func TestBackoffStartsAnew(t *testing.T) {
	cases := []struct {
		name   string
		change func(b *backoff, key types.NamespacedName, ds *appsv1.DaemonSet, clock *time.Time)
	}{
		{"when the DaemonSet is edited", func(_ *backoff, _ types.NamespacedName, ds *appsv1.DaemonSet, _ *time.Time) { ds.Generation++ }},
		{"when it is another of the same name", func(_ *backoff, _ types.NamespacedName, ds *appsv1.DaemonSet, _ *time.Time) { ds.UID = "other" }},
		{"when it was gone", func(b *backoff, key types.NamespacedName, _ *appsv1.DaemonSet, _ *time.Time) { b.forget(key) }},
		{"when nothing failed for long", func(_ *backoff, _ types.NamespacedName, _ *appsv1.DaemonSet, clock *time.Time) {
			*clock = clock.Add(2*longestWait + 1)
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var b backoff
			key, ds, clock := types.NamespacedName{Name: "a"}, agent(), now
			for range 5 {
				b.replaced(key, ds, "n", clock)
			}
			c.change(&b, key, ds, &clock)
			if got := b.waits(key, ds, clock)["n"]; got != 0 {
				t.Errorf("waits %v", got)
			}
			b.replaced(key, ds, "n", clock)
			if got := b.waits(key, ds, clock)["n"]; got != firstWait {
				t.Errorf("waits %v after the next failure, want %v", got, firstWait)
			}
		})
	}
}
