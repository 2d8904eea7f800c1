package reconcile

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

func TestPaceHoldsAStatusAccordingToHowLongWritesTake(t *testing.T) {
	key, other := types.NamespacedName{Name: "a"}, types.NamespacedName{Name: "b"}
	now := time.Unix(1000, 0)
	var p pace
	hold := func(what string, key types.NamespacedName, after, want time.Duration) {
		t.Helper()
		if got := p.hold(key, now.Add(after), false); got != want {
			t.Errorf("%s: held for %s, want %s", what, got, want)
		}
	}
	hold("the first difference", key, 0, shortestHold)
	hold("another one soon after", key, 20*time.Millisecond, 30*time.Millisecond)
	hold("another object", other, 20*time.Millisecond, shortestHold)
	hold("when it is due", key, shortestHold, 0)
	hold("long after it was due", key, time.Minute, 0)

	for range 100 {
		p.wrote(key, 10*time.Millisecond)
	}
	if got := p.hold(key, now, false); got < 190*time.Millisecond || got > 200*time.Millisecond {
		t.Errorf("writes take 10 ms: held for %s", got)
	}
	if got := p.hold(types.NamespacedName{Name: "c"}, now, true); got < 4*190*time.Millisecond || got > 4*200*time.Millisecond {
		t.Errorf("writes take 10 ms, and only people wait: held for %s", got)
	}
	p.forget(key)
	for range 100 {
		p.wrote(other, 10*time.Second)
	}
	hold("writes take very long", key, 0, longestHold)
}
