package daemonset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"weft.dev/weft/controlplane/reconcile"
)

// stateOf is what the controller reads when the templates v1 and v2 have revisions.
func stateOf(ds *appsv1.DaemonSet, nodes []*corev1.Node, pods ...*corev1.Pod) state {
	var revisions []*appsv1.ControllerRevision
	for i, name := range []string{"v1", "v2"} {
		r := historyOf(with(image(name)), nil).Current
		r.Revision = int64(i + 1)
		revisions = append(revisions, r)
	}
	return state{ds: ds, nodes: nodes, pods: pods, history: historyOf(ds, revisions)}
}

func (p plan) String() string {
	var words []string
	for _, n := range p.Create {
		words = append(words, "+"+n)
	}
	for _, pod := range p.Delete {
		words = append(words, "-"+pod.Name)
	}
	return strings.Join(words, " ")
}

func TestEveryNodeHasItsPod(t *testing.T) {
	cordoned := machine("n0", taint(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule))
	closed := machine("n0", taint("k", corev1.TaintEffectNoSchedule))
	evicting := machine("n0", taint("k", corev1.TaintEffectNoExecute))
	strange := pod("p", "n0", unbound)
	strange.Spec.Affinity = nil

	cases := []struct {
		name  string
		nodes []*corev1.Node
		pods  []*corev1.Pod
		want  string
	}{
		{"an empty cluster needs nothing", nil, nil, ""},
		{"every node gets a pod", machines(3), nil, "+n0 +n1 +n2"},
		{"a node with a pod gets no second", machines(2), []*corev1.Pod{pod("p", "n0")}, "+n1"},
		{"a pod that waits for the scheduler counts for its node", machines(1), []*corev1.Pod{pod("p", "n0", unbound)}, ""},
		{"a pod that is for no node counts nowhere", machines(1), []*corev1.Pod{strange}, "+n0"},
		{"a terminating pod has to be gone before the next", machines(1), []*corev1.Pod{pod("p", "n0", terminating)}, ""},
		{"a pod that has ended and is being deleted is as good as gone", machines(1), []*corev1.Pod{pod("p", "n0", failed, terminating)}, "+n0"},
		{"a failed pod is deleted first", machines(1), []*corev1.Pod{pod("p", "n0", failed)}, "-p"},
		{"a succeeded pod is deleted first", machines(1), []*corev1.Pod{pod("p", "n0", succeeded)}, "-p"},
		{"of two pods the older stays", machines(1), []*corev1.Pod{pod("young", "n0", age(time.Minute)), pod("old", "n0")}, "-young"},
		{"of a bound and a waiting pod the bound one stays", machines(1), []*corev1.Pod{pod("old", "n0", unbound), pod("young", "n0", age(time.Minute))}, "-old"},
		{"of equal pods the first by name stays", machines(1), []*corev1.Pod{pod("b", "n0"), pod("a", "n0")}, "-b"},
		{"a cordoned node gets its pod", []*corev1.Node{cordoned}, nil, "+n0"},
		{"a node that is closed to the template gets none", []*corev1.Node{closed}, nil, ""},
		{"a node that was closed later keeps its pod", []*corev1.Node{closed}, []*corev1.Pod{pod("p", "n0")}, ""},
		{"a failed pod on a closed node goes without successor", []*corev1.Node{closed}, []*corev1.Pod{pod("p", "n0", failed)}, "-p"},
		{"a node that evicts loses its pod", []*corev1.Node{evicting}, []*corev1.Pod{pod("p", "n0"), pod("q", "n0", terminating)}, "-p"},
		{"a waiting pod for a node that is gone is deleted", nil, []*corev1.Pod{pod("p", "n0", unbound)}, "-p"},
		{"a bound pod of a node that is gone is left to the pod garbage collector", nil, []*corev1.Pod{pod("p", "n0")}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, s := range []appsv1.DaemonSetUpdateStrategy{rolling("0", "1"), onDelete()} {
				if got := decide(stateOf(with(strategy(s)), c.nodes, c.pods...), now).String(); got != c.want {
					t.Errorf("%s: got %q, want %q", s.Type, got, c.want)
				}
			}
		})
	}
}

func TestSurgeAllowsTwoPodsWhileTheOldOneWorks(t *testing.T) {
	cases := []struct {
		name string
		pods []*corev1.Pod
		want string
	}{
		{"a new pod may start while the old one terminates", []*corev1.Pod{pod("p", "n0", terminating)}, "+n0"},
		{"the old one works and the new one does not yet: both stay", []*corev1.Pod{pod("old", "n0"), pod("new", "n0", v2, unready)}, ""},
		{"the new one works: the old one goes", []*corev1.Pod{pod("old", "n0"), pod("new", "n0", v2)}, "-old"},
		{"the new one is ready, but not for long enough: both stay", []*corev1.Pod{pod("old", "n0"), pod("new", "n0", v2, readyFor(9*time.Second))}, ""},
		{"neither works: the old one goes", []*corev1.Pod{pod("old", "n0", unready), pod("new", "n0", v2, unready)}, "-old"},
		{"of several old ones the oldest stays", []*corev1.Pod{pod("old", "n0"), pod("older", "n0", age(2*time.Hour)), pod("new", "n0", v2, unready)}, "-old"},
		{"of several new ones the oldest stays", []*corev1.Pod{pod("new", "n0", v2), pod("newer", "n0", v2, age(time.Minute))}, "-newer"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ds := with(image("v2"), strategy(rolling("1", "0")), minReady(10))
			if got := decide(stateOf(ds, machines(1), c.pods...), now).String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestFailedPodWaitsForItsTurn(t *testing.T) {
	for name, s := range map[string]appsv1.DaemonSetUpdateStrategy{"in place": rolling("0", "1"), "by surge": rolling("1", "0"), "on delete": onDelete()} {
		t.Run(name, func(t *testing.T) {
			state := stateOf(with(strategy(s)), machines(2), pod("p", "n0", failed), pod("q", "n1", failed))
			state.waits = map[string]time.Duration{"n0": 7 * time.Second}
			p := decide(state, now)
			if len(p.Failed) != 1 || p.Failed[0].Name != "q" || !slices.Contains(p.Delete, p.Failed[0]) || slices.Contains(p.Create, "n0") {
				t.Errorf("plans %v, want only q replaced", p)
			}
			if p.Again != 7*time.Second {
				t.Errorf("looks again after %v, want 7s", p.Again)
			}
		})
	}
}

func TestOldTemplateAloneIsNoReasonOnDelete(t *testing.T) {
	ds := with(image("v2"), strategy(onDelete()))
	if got := decide(stateOf(ds, machines(2), pod("p", "n0")), now).String(); got != "+n1" {
		t.Errorf("got %q, want only the missing pod", got)
	}
}

func TestAStepIsABurstAtMost(t *testing.T) {
	if p := decide(stateOf(agent(), machines(burst+9)), now); len(p.Create) != burst {
		t.Errorf("creates %d", len(p.Create))
	}
	var pods []*corev1.Pod
	for i := range burst + 9 {
		pods = append(pods, pod(fmt.Sprint("p", i), "gone", unbound))
	}
	if p := decide(stateOf(agent(), nil, pods...), now); len(p.Delete) != burst {
		t.Errorf("deletes %d", len(p.Delete))
	}
}

func TestStatusCountsNodes(t *testing.T) {
	ds := with(image("v2"), minReady(10), func(ds *appsv1.DaemonSet) { ds.Status.CollisionCount = new(int32(2)) })
	nodes := append(machines(6), machine("closed", taint("k", corev1.TaintEffectNoSchedule)))
	p := decide(stateOf(ds, nodes,
		pod("old", "n0"),
		pod("new", "n1", v2),
		pod("fresh", "n2", v2, readyFor(4*time.Second)),
		pod("almost", "n3", v2, readyFor(9*time.Second)),
		pod("starting", "n4", v2, unready),
		pod("stays", "closed"),
		pod("lost", "gone"),
	), now)
	got := fmt.Sprintf("desired %d, current %d, ready %d, available %d, unavailable %d, updated %d, misscheduled %d, generation %d, collisions %d",
		p.Status.DesiredNumberScheduled, p.Status.CurrentNumberScheduled, p.Status.NumberReady, p.Status.NumberAvailable, p.Status.NumberUnavailable,
		p.Status.UpdatedNumberScheduled, p.Status.NumberMisscheduled, p.Status.ObservedGeneration, *p.Status.CollisionCount)
	const want = "desired 6, current 5, ready 4, available 2, unavailable 4, updated 4, misscheduled 1, generation 3, collisions 2"
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	if p.Again != time.Second {
		t.Errorf("looks again after %v, want exactly when the next pod becomes available: 1s", p.Again)
	}
}

func TestPodIsUpdatedByAnyRevisionWithItsTemplate(t *testing.T) {
	twin := historyOf(with(image("v1")), nil).Current
	twin.Name, twin.Labels, twin.Revision = "twin", map[string]string{}, 9
	foreign := historyOf(with(image("v2")), nil).Current
	ds := agent()
	ds.Annotations = map[string]string{appsv1.DeprecatedTemplateGeneration: "4"}
	generation := func(p *corev1.Pod) { p.Labels[labelGeneration] = "4" }
	cases := []struct {
		name string
		pod  *corev1.Pod
		want bool
	}{
		{"the hash is that of the revision in use", pod("p", "n0", func(p *corev1.Pod) { p.Labels["controller-revision-hash"] = "twin" }), true},
		{"the hash is that of another revision with the same template", pod("p", "n0"), true},
		{"the hash is that of another template", pod("p", "n0", v2), false},
		{"the hash is lost, the template's number is right", pod("p", "n0", v2, generation), true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := state{ds: ds, nodes: machines(1), pods: []*corev1.Pod{c.pod},
				history: historyOf(ds, []*appsv1.ControllerRevision{historyOf(agent(), nil).Current, foreign, twin})}
			if got := decide(s, now).Status.UpdatedNumberScheduled == 1; got != c.want {
				t.Errorf("updated: %v", got)
			}
		})
	}
}

func TestHistoryLimitCountsRevisionsOfPods(t *testing.T) {
	var revisions []*appsv1.ControllerRevision
	for i := range 5 {
		r := historyOf(agent(), nil).Current
		r.Name, r.Revision = fmt.Sprint("r", i), int64(i+1)
		r.Labels = map[string]string{"controller-revision-hash": r.Name}
		r.Data = runtime.RawExtension{Raw: reconcile.RevisionData(&with(image(r.Name)).Spec.Template)}
		revisions = append(revisions, r)
	}
	uses := func(hash string) option {
		return func(p *corev1.Pod) { p.Labels["controller-revision-hash"] = hash }
	}
	cases := []struct {
		name  string
		limit int32
		pods  []*corev1.Pod
		want  string
	}{
		{"all fit", 4, nil, ""},
		{"the oldest go", 2, nil, "r0 r1"},
		{"one that a pod uses stays and takes a place", 2, []*corev1.Pod{pod("p", "n0", uses("r0"))}, "r1 r2"},
		{"one that only a pod uses which has ended stays too", 0, []*corev1.Pod{pod("p", "n0", uses("r1"), failed, terminating)}, "r0 r2 r3"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ds := with(image("r4"), func(ds *appsv1.DaemonSet) { ds.Spec.RevisionHistoryLimit = &c.limit })
			var names []string
			for _, r := range decide(state{ds: ds, pods: c.pods, history: historyOf(ds, revisions)}, now).Forget {
				names = append(names, r.Name)
			}
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("forgets %q, want %q", got, c.want)
			}
		})
	}
}
