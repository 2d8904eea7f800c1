package statefulset

import (
	"fmt"
	"maps"
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

// model is a StatefulSet with its pods and claims, a node that takes its time,
// a garbage collector, and a controller that may be killed after any write.
type model struct {
	set    *appsv1.StatefulSet
	pods   map[string]*corev1.Pod
	claims map[string]*corev1.PersistentVolumeClaim
	clock  time.Time
	uids   int
	log    []string
	fatal  func(format string, args ...any)
}

func newModel(set *appsv1.StatefulSet, fatal func(string, ...any)) *model {
	m := &model{set: set, pods: map[string]*corev1.Pod{}, claims: map[string]*corev1.PersistentVolumeClaim{}, clock: now}
	m.fatal = func(format string, args ...any) {
		fatal("%s\n%s", fmt.Sprintf(format, args...), strings.Join(m.log, "\n"))
	}
	m.finish()
	return m
}

func (m *model) note(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...)+": "+m.String())
}

func (m *model) image() string { return m.set.Spec.Template.Spec.Containers[0].Image }

// observe is what the controller sees. Revisions have the names of images.
func (m *model) observe() observed {
	current := m.set.Status.CurrentRevision
	if current == "" {
		current = m.image()
	}
	before := template(current)
	return observed{
		set:     m.set,
		current: revision{current, &before},
		update:  revision{m.image(), &m.set.Spec.Template},
		pods:    slices.SortedFunc(maps.Values(m.pods), func(a, b *corev1.Pod) int { return ordinalOf(a) - ordinalOf(b) }),
		claims:  maps.Clone(m.claims),
		now:     m.clock,
	}
}

// step is the controller's. It is killed after that many writes.
func (m *model) step(writes int) {
	o := m.observe()
	p := decide(o)
	m.check(newStep(o), p)
	write := func(do func()) {
		if writes--; writes >= 0 {
			do()
		}
	}
	remove := func(pod *corev1.Pod) {
		write(func() { m.change(pod.Name, func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: m.clock} }) })
	}
	for _, w := range append(slices.Clone(p.Replicas), p.Condemned...) {
		for _, claim := range w.claims {
			write(func() { m.claims[claim.Name] = claim })
		}
		if w.create != nil {
			write(func() { m.start(w.create) })
		}
		for _, claim := range w.own {
			write(func() { m.claims[claim.Name] = claim })
		}
		if w.delete != nil {
			remove(w.delete)
		}
	}
	for _, pod := range p.Delete {
		remove(pod)
	}
	write(func() {
		m.set = m.set.DeepCopy()
		m.set.Status = p.Status
	})
	m.note("step %v", p)
}

// start is what the API server does with a new pod.
func (m *model) start(pod *corev1.Pod) {
	m.uids++
	pod = pod.DeepCopy()
	pod.UID = types.UID(fmt.Sprint(m.uids))
	pod.Status.Phase = corev1.PodPending
	m.pods[pod.Name] = pod
}

func (m *model) change(name string, edit func(*corev1.Pod)) {
	pod := m.pods[name].DeepCopy()
	edit(pod)
	m.pods[name] = pod
}

// check holds the plan against what is promised to users.
func (m *model) check(s *step, p plan) {
	down := 0
	for _, pod := range s.replicas {
		if !m.isUp(pod) {
			down++
		}
	}
	allUpBelow := func(ordinal int) bool {
		return !slices.ContainsFunc(s.replicas[:ordinal-start(s.set)], func(pod *corev1.Pod) bool { return !m.isUp(pod) })
	}
	for _, c := range p.Replicas {
		if c.create == nil {
			continue
		}
		ordinal := ordinalOf(c.create)
		switch {
		case m.pods[c.podName] != nil:
			m.fatal("%s would exist twice", c.podName)
		case !isInRange(s.set, ordinal):
			m.fatal("%s is made but not wanted", c.podName)
		case !s.isParallel() && !allUpBelow(ordinal):
			m.fatal("%s is made before those below are available", c.podName)
		case ordinal < start(s.set)+partition(s.set) && revisionOf(c.create) != s.current.name:
			m.fatal("%s is below the partition and gets %s", c.podName, revisionOf(c.create))
		}
		planned := map[string]bool{}
		for _, claim := range c.claims {
			planned[claim.Name] = true
		}
		for _, volume := range c.create.Spec.Volumes {
			if name := volume.PersistentVolumeClaim.ClaimName; m.claims[name] == nil && !planned[name] {
				m.fatal("%s is made without %s", c.podName, name)
			}
		}
	}
	for _, pod := range p.deletions() {
		switch {
		case pod.DeletionTimestamp != nil:
			m.fatal("%s is deleted twice", pod.Name)
		case !isInRange(s.set, ordinalOf(pod)):
			if !s.isParallel() && (down > 0 || pod != s.condemned[0]) {
				m.fatal("%s is condemned out of order", pod.Name)
			}
			if _, whenScaled := retention(s.set); whenScaled && !m.takesClaimAlong(pod, p) {
				m.fatal("%s leaves its claim behind", pod.Name)
			}
		case reconcile.IsFinished(pod):
		case revisionOf(pod) == s.update.name || ordinalOf(pod) < start(s.set)+partition(s.set):
			m.fatal("%s is deleted for no reason", pod.Name)
		case m.isUp(pod):
			if down++; down > maxUnavailable(s.set) {
				m.fatal("%d pods would be down", down)
			}
		}
	}
}

// isUp reports whether users can count on the pod.
func (m *model) isUp(pod *corev1.Pod) bool {
	if pod == nil || !isUp(pod) {
		return false
	}
	since, _ := reconcile.ReadySince(pod)
	return m.clock.Sub(since) >= time.Duration(m.set.Spec.MinReadySeconds)*time.Second
}

// takesClaimAlong reports whether the garbage collector will delete the pod's
// claim with it.
func (m *model) takesClaimAlong(pod *corev1.Pod, p plan) bool {
	claim := m.claims[claimName(m.set, "data", ordinalOf(pod))]
	for _, w := range p.Condemned {
		if w.podName == pod.Name && len(w.own) > 0 {
			claim = w.own[0]
		}
	}
	return claim == nil || len(claim.OwnerReferences) == 1 && refersTo(claim.OwnerReferences[0], pod, podKind)
}

// advance takes a pod one step through its life.
func (m *model) advance(name string) {
	switch pod := m.pods[name]; {
	case pod.DeletionTimestamp != nil:
		delete(m.pods, name)
	case pod.Status.Phase == corev1.PodPending:
		m.change(name, func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning })
	case pod.Status.Phase == corev1.PodRunning && !reconcile.IsReady(pod):
		m.change(name, func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Time{Time: m.clock}}}
		})
	}
	m.note("%s advances", name)
}

// collectGarbage deletes claims whose owners are all gone.
func (m *model) collectGarbage() {
	alive := map[types.UID]bool{m.set.UID: true}
	for _, pod := range m.pods {
		alive[pod.UID] = true
	}
	maps.DeleteFunc(m.claims, func(_ string, claim *corev1.PersistentVolumeClaim) bool {
		return len(claim.OwnerReferences) > 0 && !slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool { return alive[ref.UID] })
	})
}

// finish runs everything in order until nothing changes any more. Then a user
// lends a hand with a pod that failed and is not wanted any more: of several,
// each waits for the others to be healthy.
func (m *model) finish() {
	for range 1000 {
		before := m.scene()
		m.step(1000)
		m.collectGarbage()
		for _, name := range slices.Sorted(maps.Keys(m.pods)) {
			m.advance(name)
		}
		m.clock = m.clock.Add(time.Second)
		next := decide(m.observe()) // by the clock as it is now
		if before != m.scene() || next.Again > 0 || !equality.Semantic.DeepEqual(next.Status, m.set.Status) {
			continue
		}
		i := slices.IndexFunc(m.observe().pods, func(pod *corev1.Pod) bool { return reconcile.IsFinished(pod) })
		if i < 0 {
			m.log = nil
			return
		}
		delete(m.pods, m.observe().pods[i].Name)
	}
	m.fatal("never comes to rest")
}

// scene is all that a step may change.
func (m *model) scene() string {
	status := m.set.Status
	status.CollisionCount = nil // always a new pointer to 0
	return fmt.Sprint(m, status, slices.Sorted(maps.Keys(m.claims)))
}

func (m *model) edit(change func(*appsv1.StatefulSetSpec)) {
	m.set = m.set.DeepCopy()
	change(&m.set.Spec)
	m.set.Generation++
	m.note("edit")
}

func (m *model) String() string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(m.pods)) {
		pod := m.pods[name]
		state := string(pod.Status.Phase)
		if pod.DeletionTimestamp != nil {
			state = "ending"
		} else if reconcile.IsReady(pod) {
			state = "ready"
		}
		words = append(words, name+"="+revisionOf(pod)+" "+state)
	}
	return fmt.Sprintf("%d of %s from %d: %s", *m.set.Spec.Replicas, m.image(), start(m.set), strings.Join(words, ", "))
}

// TestEveryHistoryKeepsItsPromisesAndEndsAsAsked edits, scales, breaks and
// deletes at random moments, and kills the controller between its writes.
func TestEveryHistoryKeepsItsPromisesAndEndsAsAsked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := withClaims(web(rapid.Int32Range(0, 5).Draw(t, "replicas")), "data")
		policies := []string{"Retain", "Delete"}
		retaining(set, rapid.SampledFrom(policies).Draw(t, "whenDeleted"), rapid.SampledFrom(policies).Draw(t, "whenScaled"))
		unavailable(set, rapid.SampledFrom([]string{"1", "2", "50%"}).Draw(t, "maxUnavailable"))
		slow(set, rapid.Int32Range(0, 2).Draw(t, "minReadySeconds"))
		if rapid.Bool().Draw(t, "parallel") {
			parallel(set)
		}
		m := newModel(set, t.Fatalf)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			m.random(t)
			m.clock = m.clock.Add(time.Second / 2)
		}
		m.edit(func(spec *appsv1.StatefulSetSpec) { *spec.UpdateStrategy.RollingUpdate.Partition = 0 })
		m.finish()
		m.checkEnd()
	})
}

func (m *model) random(t *rapid.T) {
	var pod string
	if names := slices.Sorted(maps.Keys(m.pods)); len(names) > 0 {
		pod = rapid.SampledFrom(names).Draw(t, "pod")
	}
	switch what := rapid.IntRange(0, 14).Draw(t, "what"); {
	case what == 0:
		m.edit(func(spec *appsv1.StatefulSetSpec) {
			spec.Template = template(fmt.Sprint("v", rapid.IntRange(1, 4).Draw(t, "image")))
		})
	case what == 1:
		m.edit(func(spec *appsv1.StatefulSetSpec) { *spec.Replicas = rapid.Int32Range(0, 5).Draw(t, "replicas") })
	case what == 2:
		m.edit(func(spec *appsv1.StatefulSetSpec) {
			spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: rapid.Int32Range(0, 2).Draw(t, "start")}
		})
	case what == 3:
		m.edit(func(spec *appsv1.StatefulSetSpec) {
			*spec.UpdateStrategy.RollingUpdate.Partition = rapid.Int32Range(0, 5).Draw(t, "partition")
		})
	case what == 4:
		m.collectGarbage()
	case what <= 9:
		m.step(rapid.IntRange(0, 8).Draw(t, "writes"))
	case pod == "":
	case what == 10:
		m.change(pod, func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodFailed} })
		m.note("%s fails", pod)
	case what == 11:
		m.change(pod, func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: m.clock} })
		m.note("%s is deleted by a user", pod)
	default:
		m.advance(pod)
	}
}

func (m *model) checkEnd() {
	n := int(*m.set.Spec.Replicas)
	for i := range n {
		name := podName(m.set, start(m.set)+i)
		if pod := m.pods[name]; pod == nil || !reconcile.IsReady(pod) || revisionOf(pod) != m.image() {
			m.fatal("at the end %s is not ready, or not up to date: %v", name, m)
		}
		if m.claims[claimName(m.set, "data", start(m.set)+i)] == nil {
			m.fatal("%s has no claim", name)
		}
	}
	if len(m.pods) != n {
		m.fatal("%d pods at the end: %v", len(m.pods), m)
	}
	s := m.set.Status
	if want := int32(n); s.CurrentRevision != m.image() || s.Replicas != want || s.AvailableReplicas != want || s.CurrentReplicas != want || s.UpdatedReplicas != want {
		m.fatal("status at the end: %+v", s)
	}
}
