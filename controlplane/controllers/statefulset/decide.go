package statefulset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weft.dev/weft/controlplane/reconcile"
)

// plan is what one step does, in this order. What fails for one pod holds up
// those that come later.
type plan struct {
	// Warnings are events about what cannot be done.
	Warnings []warning
	// Replicas holds the work on pods that the set should have, lowest ordinal first.
	Replicas []work
	// Condemned holds the work on the others, before one of them is deleted.
	Condemned []work
	// Delete holds pods that are condemned, or replaced by a rollout.
	Delete []*corev1.Pod
	// Status holds the counts as they are before the step.
	Status appsv1.StatefulSetStatus
	// Again is when the next ready pod becomes available; 0 if none will.
	Again time.Duration
}

// work is what is done for one pod, in this order; mostly nothing.
type work struct {
	podName string
	// claims are to be made.
	claims []*corev1.PersistentVolumeClaim
	// create is the pod, if there is none.
	create *corev1.Pod
	// own holds changed copies of claims, with the owners that the retention policy asks for.
	own []*corev1.PersistentVolumeClaim
	// repair is a changed copy of a pod that lacks part of its identity.
	repair *corev1.Pod
	// delete is the pod, if it has finished and has to be made again.
	delete *corev1.Pod
}

// isAny reports whether there is anything to do.
func (w work) isAny() bool {
	return len(w.claims) > 0 || w.create != nil || len(w.own) > 0 || w.repair != nil || w.delete != nil
}

// warning is an event of type Warning.
type warning struct{ reason, message string }

// revision is a pod template that the set has or had.
type revision struct {
	name     string // of the ControllerRevision, and in the pods' label
	template *corev1.PodTemplateSpec
}

// observed is what a step is decided on.
type observed struct {
	set *appsv1.StatefulSet
	// current is the revision before the rollout, update the one after it.
	// They are the same when there is no rollout.
	current, update revision
	// pods are all that the set controls; their names are "<set>-<ordinal>".
	pods []*corev1.Pod
	// claims holds those that exist of the set's claims, by name.
	claims map[string]*corev1.PersistentVolumeClaim
	now    time.Time
}

// step is one step while it is decided on.
type step struct {
	observed
	// replicas has one place for each pod that the set should have, lowest
	// ordinal first; nil where the pod is missing.
	replicas []*corev1.Pod
	// condemned are the pods beyond them, highest ordinal first.
	condemned []*corev1.Pod
	plan      plan
}

// decide returns the next step.
func decide(o observed) plan {
	s := newStep(o)
	s.plan.Status, s.plan.Again = s.status()
	switch {
	case o.set.DeletionTimestamp != nil:
	case s.isParallel():
		s.allAtOnce()
	default:
		s.oneByOne()
	}
	return s.plan
}

func newStep(o observed) *step {
	s := &step{observed: o, replicas: make([]*corev1.Pod, *o.set.Spec.Replicas)}
	for _, pod := range o.pods {
		if i := ordinalOf(pod) - start(o.set); i >= 0 && i < len(s.replicas) {
			s.replicas[i] = pod
		} else {
			s.condemned = append(s.condemned, pod)
		}
	}
	slices.SortFunc(s.condemned, func(a, b *corev1.Pod) int { return cmp.Compare(ordinalOf(b), ordinalOf(a)) })
	return s
}

func (s *step) isParallel() bool {
	return s.set.Spec.PodManagementPolicy == appsv1.ParallelPodManagement
}

// oneByOne is the policy OrderedReady: a pod is only made, ended or replaced
// when all pods below it are available.
func (s *step) oneByOne() {
	for i := range s.replicas {
		if !s.keep(i) {
			return // the pod's next change queues the set
		}
	}
	if len(s.condemned) > 0 {
		s.prepareCondemned()
		s.condemnHighest()
		return
	}
	s.roll()
}

// allAtOnce is the policy Parallel: no pod waits for another, except in a rollout.
func (s *step) allAtOnce() {
	for i := range s.replicas {
		s.keep(i)
	}
	s.prepareCondemned()
	for _, pod := range s.condemned {
		s.delete(pod)
	}
	s.roll()
}

// keep sees to it that the pod in place i exists and is what it should be. It
// reports whether pods above may be touched if they are taken one by one.
func (s *step) keep(i int) bool {
	pod := s.replicas[i]
	w := work{podName: podName(s.set, start(s.set)+i)}
	defer func() { s.plan.Replicas = append(s.plan.Replicas, w) }()
	switch {
	case pod == nil:
		s.create(&w, start(s.set)+i)
		return false
	case reconcile.IsFinished(pod):
		// Failed, evicted, or ended with its node: whatever the exit code, it
		// has to run again, and the name is free when the old pod is gone.
		if pod.DeletionTimestamp == nil {
			w.delete = pod
		}
		return false
	}
	isPending := pod.Status.Phase == corev1.PodPending
	mayPass := s.isParallel() || s.isAvailable(pod)
	if isPending {
		w.claims = s.missingClaims(start(s.set) + i)
	}
	if isPending || mayPass {
		w.own = s.ownClaims(pod)
	}
	if mayPass {
		w.repair = s.repaired(pod)
	}
	return mayPass
}

// prepareCondemned sees to it that claims which are not retained go with their pods.
func (s *step) prepareCondemned() {
	for _, pod := range s.condemned {
		s.plan.Condemned = append(s.plan.Condemned, work{podName: pod.Name, own: s.ownClaims(pod)})
	}
}

// condemnHighest ends the highest condemned pod. It waits until those below
// are available, so that a set under repair does not lose more; the
// pod itself need not be.
func (s *step) condemnHighest() {
	highest, below := s.condemned[0], s.condemned[1:]
	isHealthy := func(pod *corev1.Pod) bool { return s.isAvailable(pod) }
	if isHealthy(highest) || !slices.ContainsFunc(below, func(pod *corev1.Pod) bool { return !isHealthy(pod) }) {
		s.delete(highest)
	}
}

// roll ends pods of old revisions from the highest down to the partition, at
// most as many as may be unavailable. Those that are unavailable anyway go first,
// and do not wait for room.
func (s *step) roll() {
	strategy := s.set.Spec.UpdateStrategy
	if strategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		return // OnDelete
	}
	var down, up []*corev1.Pod
	room := maxUnavailable(s.set)
	for i := len(s.replicas) - 1; i >= 0; i-- {
		pod := s.replicas[i]
		isUp := pod != nil && s.isAvailable(pod)
		if !isUp {
			room--
		}
		switch isOld := pod != nil && i >= partition(s.set) && revisionOf(pod) != s.update.name; {
		case isOld && isUp:
			up = append(up, pod)
		case isOld && !reconcile.IsFinished(pod): // the finished ones were dealt with
			down = append(down, pod)
		}
	}
	for _, pod := range slices.Concat(down, up[:min(max(room, 0), len(up))]) {
		s.delete(pod)
	}
}

// delete plans the end of a pod, unless it is on its way already.
func (s *step) delete(pod *corev1.Pod) {
	if pod.DeletionTimestamp == nil {
		s.plan.Delete = append(s.plan.Delete, pod)
	}
}

// isAvailable reports whether the pod has been ready for long enough and is
// not asked to end.
func (s *step) isAvailable(pod *corev1.Pod) bool {
	available, _ := reconcile.IsAvailable(pod, s.set.Spec.MinReadySeconds, s.now)
	return available && pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil
}

// partition is how many of the lowest pods stay at the current revision.
func partition(set *appsv1.StatefulSet) int {
	if rolling := set.Spec.UpdateStrategy.RollingUpdate; rolling != nil && rolling.Partition != nil {
		return int(*rolling.Partition)
	}
	return 0
}

// maxUnavailable is how many pods a rollout may keep down at once: at least
// one, and a percentage is rounded down.
func maxUnavailable(set *appsv1.StatefulSet) int {
	rolling := set.Spec.UpdateStrategy.RollingUpdate
	if rolling == nil {
		return 1
	}
	limit := intstr.ValueOrDefault(rolling.MaxUnavailable, intstr.FromInt32(1))
	// The API server has refused what cannot be parsed.
	n, _ := intstr.GetScaledValueFromIntOrPercent(limit, int(*set.Spec.Replicas), false)
	return max(n, 1)
}
