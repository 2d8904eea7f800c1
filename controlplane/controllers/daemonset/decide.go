package daemonset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/controlplane/reconcile"
)

// burst is how many pods one step creates or deletes at most.
const burst = 250

// plan is what one step does.
type plan struct {
	// Create names the nodes that get a pod.
	Create []string
	// Delete holds the pods that go, Failed and Succeeded those of them that
	// had ended by themselves.
	Delete, Failed, Succeeded []*corev1.Pod
	// Status holds the counts as they are before Create and Delete.
	Status appsv1.DaemonSetStatus
	// Forget holds revisions beyond the history limit.
	Forget []*appsv1.ControllerRevision
	// Again is when time alone changes something: a ready pod becomes
	// available, or a failed one may be replaced. 0 if it does not.
	Again time.Duration
}

// state is what a decision is made from.
type state struct {
	ds    *appsv1.DaemonSet
	nodes []*corev1.Node
	// pods are all that ds controls.
	pods    []*corev1.Pod
	history reconcile.History
	// waits says for how long a failed pod of a node is not replaced yet.
	waits map[string]time.Duration
}

// step is a state, seen per node, while it is decided on.
type step struct {
	state
	now     time.Time
	perNode []node // in the order of their names, so that equal states give equal plans
	plan    plan
}

// node is one node and the daemon pods for it. It may have left the cluster
// before its pods did.
type node struct {
	name   string
	exists bool
	verdict
	// pods are in the order of their claim to stay, bound ones and old ones
	// first. Those that have ended and are being deleted are left out.
	pods []*corev1.Pod
}

// decide returns the next step. Placement comes first; only when every node
// has what it should, or waits for a pod to end, does a rolling update move.
func decide(s state, now time.Time) plan {
	st := newStep(s, now)
	st.count()
	for _, n := range st.perNode {
		st.place(n)
	}
	if s.ds.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType && len(st.plan.Create)+len(st.plan.Delete) == 0 {
		st.roll()
	}
	st.plan.Create = st.plan.Create[:min(len(st.plan.Create), burst)]
	st.plan.Delete = st.plan.Delete[:min(len(st.plan.Delete), burst)]
	st.plan.Forget = st.surplusRevisions()
	return st.plan
}

func newStep(s state, now time.Time) *step {
	byName := map[string]*node{}
	at := func(name string) *node {
		if byName[name] == nil {
			byName[name] = &node{name: name}
		}
		return byName[name]
	}
	place := newPlacement(s.ds)
	for _, n := range s.nodes {
		found := at(n.Name)
		found.exists, found.verdict = true, place.on(n)
	}
	for _, pod := range s.pods {
		if name := targetNode(pod); name != "" && !(reconcile.IsFinished(pod) && pod.DeletionTimestamp != nil) {
			at(name).pods = append(at(name).pods, pod)
		}
	}
	st := &step{state: s, now: now}
	for _, n := range byName {
		slices.SortFunc(n.pods, byClaim)
		st.perNode = append(st.perNode, *n)
	}
	slices.SortFunc(st.perNode, func(a, b node) int { return cmp.Compare(a.name, b.name) })
	return st
}

func byClaim(a, b *corev1.Pod) int {
	unbound := func(p *corev1.Pod) int {
		if p.Spec.NodeName == "" {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(unbound(a), unbound(b)),
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(a.Name, b.Name),
	)
}

// place gives the node a pod, or takes away what it should not have.
func (st *step) place(n node) {
	switch {
	case n.shouldRun && len(n.pods) == 0:
		st.create(n)
	case n.mayStay:
		st.prune(n)
	default:
		for _, pod := range n.pods {
			// Bound pods of a node that is gone are the pod garbage
			// collector's; it cannot see those that were never bound.
			if pod.DeletionTimestamp == nil && (n.exists || pod.Spec.NodeName == "") {
				st.delete(pod)
			}
		}
	}
}

// prune replaces pods that have ended and removes those that are one too many.
// Without surge the oldest stays. With surge an old and a new one may be there
// while the old one works and the new one does not yet.
func (st *step) prune(n node) {
	var running []*corev1.Pod
	waiting := false
	for _, pod := range n.pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case pod.Status.Phase == corev1.PodFailed && st.waits[n.name] > 0:
			waiting = true
			st.again(st.waits[n.name])
		case pod.Status.Phase == corev1.PodFailed:
			st.plan.Failed = append(st.plan.Failed, pod)
			st.delete(pod)
		case pod.Status.Phase == corev1.PodSucceeded:
			st.plan.Succeeded = append(st.plan.Succeeded, pod)
			st.delete(pod)
		default:
			running = append(running, pod)
		}
	}
	if !allowsSurge(st.ds) {
		for _, pod := range running[min(1, len(running)):] {
			st.delete(pod)
		}
		return
	}
	if len(running) == 0 && n.shouldRun && !waiting {
		st.create(n) // beside those that terminate
	}
	if len(running) < 2 {
		return
	}
	var old, updated *corev1.Pod
	for _, pod := range running {
		switch {
		case st.isUpdated(pod) && updated == nil:
			updated = pod
		case !st.isUpdated(pod) && old == nil:
			old = pod
		default:
			st.delete(pod)
		}
	}
	if old != nil && updated != nil && (!reconcile.IsReady(old) || st.isAvailable(updated)) {
		st.delete(old)
	}
}

func (st *step) create(n node)          { st.plan.Create = append(st.plan.Create, n.name) }
func (st *step) delete(pod *corev1.Pod) { st.plan.Delete = append(st.plan.Delete, pod) }

// again asks for another step after d.
func (st *step) again(d time.Duration) {
	if d > 0 && (st.plan.Again == 0 || d < st.plan.Again) {
		st.plan.Again = d
	}
}

func (st *step) isAvailable(pod *corev1.Pod) bool {
	available, _ := reconcile.IsAvailable(pod, st.ds.Spec.MinReadySeconds, st.now)
	return available
}

// isUpdated reports whether the pod was made from the present template. The
// hash says so, or the count of templates should the revision have been lost.
func (st *step) isUpdated(pod *corev1.Pod) bool {
	hash := pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
	for _, revision := range st.history.Equal {
		if hash == st.history.HashOf(revision) {
			return true
		}
	}
	generation, ok := templateGeneration(st.ds)
	return ok && pod.Labels[labelGeneration] == generation
}

// surplusRevisions returns what the history limit leaves no room for. Those of
// existing pods stay, and count.
func (st *step) surplusRevisions() []*appsv1.ControllerRevision {
	used := map[string]bool{}
	for _, pod := range st.pods {
		used[pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
	}
	isLive := func(r *appsv1.ControllerRevision) bool { return used[st.history.HashOf(r)] }
	limit := int(*st.ds.Spec.RevisionHistoryLimit)
	for _, r := range st.history.Old {
		if isLive(r) {
			limit--
		}
	}
	return st.history.Surplus(limit, isLive)
}
