package daemonset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"weft.dev/weft/controlplane/reconcile"
)

// model is a DaemonSet on a few nodes. Everything but the controller's own
// steps happens in random order: scheduler, node agents and users are each
// slow in their own way.
type model struct {
	ds        *appsv1.DaemonSet
	nodes     []*corev1.Node
	pods      []*corev1.Pod
	revisions []*appsv1.ControllerRevision
	clock     time.Time
	made      int
	log       []string
}

func newModel(nodes int, s appsv1.DaemonSetUpdateStrategy, minReadySeconds int32) *model {
	m := &model{
		ds:    with(strategy(s), minReady(minReadySeconds), func(ds *appsv1.DaemonSet) { ds.Spec.RevisionHistoryLimit = new(int32(2)) }),
		nodes: machines(nodes),
		clock: now,
	}
	m.finish()
	return m
}

// decide is the controller's decision on the whole truth.
func (m *model) decide() (state, plan) {
	s := state{ds: m.ds, nodes: m.nodes, pods: m.pods, history: historyOf(m.ds, m.revisions)}
	return s, decide(s, m.clock)
}

// step is the controller's.
func (m *model) step() {
	s, p := m.decide()
	m.log = append(m.log, fmt.Sprintf("step: %v", p))
	m.revisions = slices.DeleteFunc(m.revisions, func(r *appsv1.ControllerRevision) bool { return r.Name == s.history.Current.Name })
	m.revisions = append(m.revisions, s.history.Current)
	m.revisions = slices.DeleteFunc(m.revisions, func(r *appsv1.ControllerRevision) bool {
		return slices.ContainsFunc(p.Forget, func(f *appsv1.ControllerRevision) bool { return f.Name == r.Name })
	})
	m.ds.Status = p.Status
	for _, deleted := range p.Delete {
		i := slices.Index(m.pods, deleted)
		if deleted.Spec.NodeName == "" {
			m.pods = slices.Delete(m.pods, i, i+1)
			continue
		}
		m.pods[i] = deleted.DeepCopy()
		m.pods[i].DeletionTimestamp = &metav1.Time{Time: m.clock}
	}
	for _, name := range p.Create {
		m.made++
		created := newPod(m.ds, name, s.history.HashOf(s.history.Current))
		created.Name = fmt.Sprint("p", m.made)
		created.UID, created.CreationTimestamp = types.UID(created.Name), metav1.NewTime(m.clock)
		m.pods = append(m.pods, created)
	}
}

// change edits a copy of one pod, as the cache holds a new object for each version.
func (m *model) change(p *corev1.Pod, what string, edit func(*corev1.Pod)) {
	i := slices.Index(m.pods, p)
	m.pods[i] = p.DeepCopy()
	edit(m.pods[i])
	m.log = append(m.log, fmt.Sprintf("%s on %s: %s", p.Name, targetNode(p), what))
}

func (m *model) bind(p *corev1.Pod) {
	if p.Spec.NodeName == "" && slices.ContainsFunc(m.nodes, func(n *corev1.Node) bool { return n.Name == targetNode(p) }) {
		m.change(p, "bound", func(p *corev1.Pod) { p.Spec.NodeName, p.Status.Phase = targetNode(p), corev1.PodRunning })
	}
}

func (m *model) ready(p *corev1.Pod) {
	if p.Spec.NodeName != "" && !reconcile.IsFinished(p) && !reconcile.IsReady(p) {
		m.change(p, "ready", func(p *corev1.Pod) {
			readyFor(0)(p)
			p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(m.clock)
		})
	}
}

// end removes a pod that terminates, or whose node is gone.
func (m *model) end(p *corev1.Pod) {
	onNode := slices.ContainsFunc(m.nodes, func(n *corev1.Node) bool { return n.Name == targetNode(p) })
	if p.Spec.NodeName != "" && (p.DeletionTimestamp != nil || !onNode) {
		m.pods = slices.DeleteFunc(m.pods, func(other *corev1.Pod) bool { return other == p })
		m.log = append(m.log, p.Name+" ended")
	}
}

func (m *model) edit(name string) {
	m.ds = m.ds.DeepCopy()
	image(name)(m.ds)
	m.ds.Generation++
	m.log = append(m.log, "edit to "+name)
}

// paint gives a node other taints, so that it should run a pod, may keep it, or must not.
func (m *model) paint(i int, effect corev1.TaintEffect) {
	name := m.nodes[i].Name
	m.nodes = slices.Clone(m.nodes)
	m.nodes[i] = machine(name)
	if effect != "" {
		m.nodes[i] = machine(name, taint("k", effect))
	}
	m.log = append(m.log, fmt.Sprintf("%s has taint %q", name, effect))
}

// finish runs everything in order until nothing changes any more.
func (m *model) finish() {
	for quiet := 0; quiet < 2; quiet++ {
		m.log = nil
		before := m.ds.Status
		_, p := m.decide()
		m.step()
		for _, play := range []func(*corev1.Pod){m.bind, m.ready, m.end} {
			for _, p := range slices.Clone(m.pods) {
				play(p)
			}
		}
		m.clock = m.clock.Add(time.Duration(m.ds.Spec.MinReadySeconds+1) * time.Second)
		if p.String() != "" || len(m.log) > 1 || !equality.Semantic.DeepEqual(before, m.ds.Status) {
			quiet = -1
		}
	}
	m.log = nil
}

// served returns the nodes that should run a pod, and of these the ones that
// have an available one.
func (m *model) served(pods []*corev1.Pod) (wanted, served map[string]bool) {
	wanted, served = map[string]bool{}, map[string]bool{}
	for _, n := range m.nodes {
		if newPlacement(m.ds).on(n).shouldRun {
			wanted[n.Name] = true
		}
	}
	for _, p := range pods {
		if available, _ := reconcile.IsAvailable(p, m.ds.Spec.MinReadySeconds, m.clock); available && p.DeletionTimestamp == nil && wanted[targetNode(p)] {
			served[targetNode(p)] = true
		}
	}
	return wanted, served
}

// live are the node's pods that nobody asked to end.
func (m *model) live(node string) []*corev1.Pod {
	return slices.DeleteFunc(slices.Clone(m.pods), func(p *corev1.Pod) bool { return targetNode(p) != node || p.DeletionTimestamp != nil })
}

// occupied reports whether a pod of the node runs or may still run.
func (m *model) occupied(node string) bool {
	return slices.ContainsFunc(m.pods, func(p *corev1.Pod) bool {
		return targetNode(p) == node && !(reconcile.IsFinished(p) && p.DeletionTimestamp != nil)
	})
}

// check looks at what a step is about to do.
func (m *model) check() error {
	_, p := m.decide()
	wanted, before := m.served(m.pods)
	_, after := m.served(slices.DeleteFunc(slices.Clone(m.pods), func(pod *corev1.Pod) bool { return slices.Contains(p.Delete, pod) }))
	limits := limitsOf(m.ds, len(wanted))
	unserved := len(wanted) - len(before)
	if now := len(wanted) - len(after); now > max(unserved, limits.unavailable) || limits.surge > 0 && now > unserved {
		return fmt.Errorf("%v leaves %d nodes without a pod that works, limits %+v", p, now, limits)
	}
	surging := 0
	for node := range wanted {
		if len(m.live(node)) > 1 {
			surging++
		}
	}
	extra := 0
	for _, node := range p.Create {
		if !wanted[node] {
			return fmt.Errorf("%v makes a pod on %s, where none should run", p, node)
		}
		if limits.surge == 0 && m.occupied(node) || len(m.live(node)) > 1 {
			return fmt.Errorf("%v makes one pod too many on %s", p, node)
		}
		if before[node] {
			extra++
		}
	}
	if extra > max(0, limits.surge-surging) {
		return fmt.Errorf("%v surges on %d nodes while %d do already, limit %d", p, extra, surging, limits.surge)
	}
	return nil
}

// settled reports what is wrong when nothing moves any more.
func (m *model) settled() error {
	if _, p := m.decide(); p.String() != "" || len(p.Forget) > 0 {
		return fmt.Errorf("there is still something to do: %v, %d revisions", p, len(p.Forget))
	}
	wanted, served := m.served(m.pods)
	if len(served) != len(wanted) {
		return fmt.Errorf("%d of %d nodes are served", len(served), len(wanted))
	}
	place := newPlacement(m.ds)
	for _, n := range m.nodes {
		pods := m.live(n.Name)
		switch v := place.on(n); {
		case v.shouldRun && len(pods) != 1, !v.mayStay && len(pods) != 0, len(pods) > 1:
			return fmt.Errorf("%d pods on %s", len(pods), n.Name)
		case v.shouldRun && m.ds.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType && pods[0].Spec.Containers[0].Image != m.ds.Spec.Template.Spec.Containers[0].Image:
			return fmt.Errorf("%s runs %s", n.Name, pods[0].Spec.Containers[0].Image)
		}
	}
	s := m.ds.Status
	if int(s.DesiredNumberScheduled) != len(wanted) || s.NumberAvailable != s.DesiredNumberScheduled || s.NumberUnavailable != 0 || s.ObservedGeneration != m.ds.Generation {
		return fmt.Errorf("status %+v", s)
	}
	return nil
}

// TestEveryHistoryKeepsItsLimitsAndEndsAsAsked edits the template, taints,
// adds and removes nodes and breaks pods at random moments of updates.
func TestEveryHistoryKeepsItsLimitsAndEndsAsAsked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SampledFrom([]appsv1.DaemonSetUpdateStrategy{
			rolling("0", "1"), rolling("0", "2"), rolling("0", "50%"), rolling("1", "0"), rolling("3", "0"), rolling("30%", "0"), onDelete(),
		}).Draw(t, "strategy")
		m := newModel(rapid.IntRange(0, 6).Draw(t, "nodes"), s, rapid.SampledFrom([]int32{0, 3}).Draw(t, "minReadySeconds"))
		fail := func(err error) {
			if err != nil {
				t.Fatalf("%v\n%s", err, strings.Join(m.log, "\n"))
			}
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			m.disturb(t)
			m.clock = m.clock.Add(time.Second)
			fail(m.check())
			if rapid.Bool().Draw(t, "react") {
				m.step()
			}
		}
		log := m.log
		m.finish()
		m.log = log
		fail(m.settled())
	})
}

// disturb lets one thing happen that is not the controller's doing.
func (m *model) disturb(t *rapid.T) {
	what := rapid.IntRange(0, 14).Draw(t, "what")
	switch {
	case what == 0:
		m.edit(fmt.Sprint("v", rapid.IntRange(1, 4).Draw(t, "image")))
	case what == 1:
		m.nodes = append(slices.Clone(m.nodes), machine(fmt.Sprint("m", m.made)))
		m.made++
	case len(m.nodes) > 0 && what == 2:
		i := rapid.IntRange(0, len(m.nodes)-1).Draw(t, "node")
		m.log = append(m.log, m.nodes[i].Name+" leaves")
		m.nodes = slices.Delete(slices.Clone(m.nodes), i, i+1)
	case len(m.nodes) > 0 && what == 3:
		effect := rapid.SampledFrom([]corev1.TaintEffect{"", corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute}).Draw(t, "effect")
		m.paint(rapid.IntRange(0, len(m.nodes)-1).Draw(t, "node"), effect)
	case len(m.pods) > 0:
		p := m.pods[rapid.IntRange(0, len(m.pods)-1).Draw(t, "pod")]
		switch {
		case what < 7:
			m.bind(p)
		case what < 10:
			m.ready(p)
		case what < 13:
			m.end(p)
		case what == 13 && !reconcile.IsFinished(p):
			m.change(p, "not ready", unready)
		case what == 14 && p.Spec.NodeName != "" && !reconcile.IsFinished(p):
			m.change(p, "failed", failed)
		}
	}
}
