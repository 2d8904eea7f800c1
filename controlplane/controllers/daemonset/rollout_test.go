package daemonset

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func TestLimits(t *testing.T) {
	cases := []struct {
		name                   string
		surge, unavailable     string
		desired                int
		wantSurge, wantMissing int
	}{
		{"numbers stand for themselves", "0", "3", 10, 0, 3},
		{"maxUnavailable is rounded up", "0", "25%", 10, 0, 3},
		{"maxSurge is rounded up", "1%", "0", 10, 1, 0},
		{"both zero would never move", "0", "0", 10, 0, 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := limitsOf(with(strategy(rolling(c.surge, c.unavailable))), c.desired)
			if want := (limits{c.wantSurge, c.wantMissing}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	if got := limitsOf(with(strategy(onDelete())), 10); got != (limits{}) {
		t.Errorf("OnDelete has limits %+v", got)
	}
}

// everywhere is one pod per node of n nodes, p0 on n0 and so on.
func everywhere(n int, options ...option) []*corev1.Pod {
	var pods []*corev1.Pod
	for i := range n {
		pods = append(pods, pod(fmt.Sprint("p", i), fmt.Sprint("n", i), options...))
	}
	return pods
}

func TestRollingInPlace(t *testing.T) {
	closed := taint("k", corev1.TaintEffectNoSchedule)
	cases := []struct {
		name        string
		unavailable string
		nodes       []*corev1.Node
		pods        []*corev1.Pod
		edit        func(*appsv1.DaemonSet)
		want        string
	}{
		{"old pods go, as many as may be unavailable", "2", machines(4), everywhere(4), nil, "-p0 -p1"},
		{"a percentage is one of the nodes that should run a pod", "50%", machines(4), everywhere(4), nil, "-p0 -p1"},
		{"nothing moves while a node waits for its old pod to end", "1", machines(2), []*corev1.Pod{pod("p0", "n0", terminating), pod("p1", "n1")}, nil, ""},
		{"nothing moves while a new pod is not ready", "1", machines(2), []*corev1.Pod{pod("p0", "n0", v2, unready), pod("p1", "n1")}, nil, ""},
		{"nothing moves while a new pod is not ready for long enough", "1", machines(2),
			[]*corev1.Pod{pod("p0", "n0", v2, readyFor(9*time.Second)), pod("p1", "n1")}, minReady(10), ""},
		{"the next goes when the new pod is ready for long enough", "1", machines(2),
			[]*corev1.Pod{pod("p0", "n0", v2, readyFor(10*time.Second)), pod("p1", "n1")}, minReady(10), "-p1"},
		{"old pods that do not work go at once, and use up the limit", "2", machines(4),
			[]*corev1.Pod{pod("p0", "n0"), pod("p1", "n1", unready), pod("p2", "n2", unready), pod("p3", "n3", unready)}, nil, "-p1 -p2 -p3"},
		{"nothing is left to do when all pods are new", "1", machines(2), everywhere(2, v2), nil, ""},
		{"an old pod on a node that is closed now is replaced by none", "1", []*corev1.Node{machine("n0", closed)}, everywhere(1), nil, "-p0"},
		{"a node that is closed and empty does not count as unavailable", "1", append(machines(1), machine("n1", closed)), everywhere(1), nil, "-p0"},
		{"a node that is gone does not count as unavailable", "1", machines(1), append(everywhere(1), pod("lost", "gone", unready)), nil, "-p0"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ds := with(image("v2"), strategy(rolling("0", c.unavailable)))
			if c.edit != nil {
				c.edit(ds)
			}
			if got := decide(stateOf(ds, c.nodes, c.pods...), now).String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestRollingBySurge(t *testing.T) {
	closed := taint("k", corev1.TaintEffectNoSchedule)
	cases := []struct {
		name  string
		surge string
		nodes []*corev1.Node
		pods  []*corev1.Pod
		want  string
	}{
		{"new pods come, as many as may be too many", "2", machines(4), everywhere(4), "+n0 +n1"},
		{"nothing moves while a new pod is not ready", "1", machines(2), append(everywhere(2), pod("new", "n0", v2, unready)), ""},
		{"an old pod that does not work gets its successor at once", "1", machines(3),
			[]*corev1.Pod{pod("p0", "n0"), pod("new", "n0", v2, unready), pod("p1", "n1", unready), pod("p2", "n2")}, "+n1"},
		{"the old pod goes first, then the next node gets its new one", "1", machines(2), append(everywhere(2), pod("new", "n0", v2)), "-p0"},
		{"a node whose old pod terminates does not hold up the next", "1", machines(2), []*corev1.Pod{pod("p0", "n0", terminating), pod("new", "n0", v2), pod("p1", "n1")}, "+n1"},
		{"nothing is left to do when all pods are new", "1", machines(2), everywhere(2, v2), ""},
		{"on a closed node an old pod that does not work goes", "1", []*corev1.Node{machine("n0", closed)}, everywhere(1, unready), "-p0"},
		{"on a closed node a pod that works stays until others do", "1", []*corev1.Node{machine("n0", closed), machine("n1")},
			[]*corev1.Pod{pod("p0", "n0"), pod("p1", "n1", v2, unready)}, ""},
		{"on a closed node a pod that works goes when others do", "1", []*corev1.Node{machine("n0", closed), machine("n1")},
			[]*corev1.Pod{pod("p0", "n0"), pod("p1", "n1", v2)}, "-p0"},
		{"pods of a node that is gone do not count", "1", []*corev1.Node{machine("n0", closed), machine("n1")},
			[]*corev1.Pod{pod("p0", "n0"), pod("p1", "n1", v2, unready), pod("lost", "gone")}, ""},
		{"a failed old pod does not keep its successor away", "1", machines(1), []*corev1.Pod{pod("p0", "n0", failed)}, "+n0 -p0"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ds := with(image("v2"), strategy(rolling(c.surge, "0")))
			if got := decide(stateOf(ds, c.nodes, c.pods...), now).String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestEqualStatesGiveEqualPlans(t *testing.T) {
	ds := with(image("v2"), strategy(rolling("0", "2")))
	nodes, pods := machines(5), everywhere(5)
	want := decide(stateOf(ds, nodes, pods...), now).String()
	for range 20 {
		nodes, pods = append(nodes[1:], nodes[0]), append(pods[2:], pods[:2]...)
		if got := decide(stateOf(ds, nodes, pods...), now).String(); got != want {
			t.Fatalf("another order gives %q, not %q", got, want)
		}
	}
}
