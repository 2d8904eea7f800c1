package statefulset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weft.dev/weft/controlplane/reconcile"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func template(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
	}
}

// web wants n pods of image "v1", one by one.
func web(n int32) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "web"},
		Spec: appsv1.StatefulSetSpec{
			Replicas:            &n,
			ServiceName:         "svc",
			Selector:            &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template:            template("v1"),
			PodManagementPolicy: appsv1.OrderedReadyPodManagement,
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{
				Type:          appsv1.RollingUpdateStatefulSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: new(int32)},
			},
			RevisionHistoryLimit: new(int32(10)),
		},
	}
}

func parallel(set *appsv1.StatefulSet) *appsv1.StatefulSet {
	set.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
	return set
}

func partitioned(set *appsv1.StatefulSet, n int32) *appsv1.StatefulSet {
	set.Spec.UpdateStrategy.RollingUpdate.Partition = &n
	return set
}

func unavailable(set *appsv1.StatefulSet, limit string) *appsv1.StatefulSet {
	set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = new(intstr.Parse(limit))
	return set
}

func onDelete(set *appsv1.StatefulSet) *appsv1.StatefulSet {
	set.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
	return set
}

func from(set *appsv1.StatefulSet, ordinal int32) *appsv1.StatefulSet {
	set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: ordinal}
	return set
}

func slow(set *appsv1.StatefulSet, minReadySeconds int32) *appsv1.StatefulSet {
	set.Spec.MinReadySeconds = minReadySeconds
	return set
}

func deleted(set *appsv1.StatefulSet) *appsv1.StatefulSet {
	set.DeletionTimestamp = &metav1.Time{Time: now}
	return set
}

func withClaims(set *appsv1.StatefulSet, templates ...string) *appsv1.StatefulSet {
	for _, name := range templates {
		set.Spec.VolumeClaimTemplates = append(set.Spec.VolumeClaimTemplates, corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	return set
}

func retaining(set *appsv1.StatefulSet, whenDeleted, whenScaled string) *appsv1.StatefulSet {
	set.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
		WhenDeleted: appsv1.PersistentVolumeClaimRetentionPolicyType(whenDeleted),
		WhenScaled:  appsv1.PersistentVolumeClaimRetentionPolicyType(whenScaled),
	}
	return set
}

// newTestPod reads "ordinal state revision", such as "0 ready" or "3 pending
// old". States are pending, running, ready (for ten seconds), stopped (ready,
// but its phase is not Running), failed, failed-ending, succeeded and ending
// (still ready); the revision is "new" unless it is given.
func newTestPod(set *appsv1.StatefulSet, description string) *corev1.Pod {
	words := append(strings.Fields(description), "new")
	name := set.Name + "-" + words[0]
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: name, UID: types.UID("uid of " + name),
			Labels: map[string]string{"app": "web", appsv1.StatefulSetRevisionLabel: words[2], appsv1.StatefulSetPodNameLabel: name},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	pod.Spec.Volumes = withClaimVolumes(set, pod)
	state, isEnding := strings.CutSuffix(words[1], "-ending")
	if isEnding || state == "ending" {
		pod.DeletionTimestamp = &metav1.Time{Time: now}
	}
	switch state {
	case "pending":
		pod.Status.Phase = corev1.PodPending
	case "running":
	case "ready", "ending", "stopped":
		pod.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-10 * time.Second)),
		}}
		if state == "stopped" {
			pod.Status.Phase = corev1.PodUnknown
		}
	case "failed":
		pod.Status.Phase = corev1.PodFailed
	case "succeeded":
		pod.Status.Phase = corev1.PodSucceeded
	default:
		panic("unknown state " + state)
	}
	return pod
}

// observe sets the scene: pods are separated by commas, existing claims by spaces.
func observe(set *appsv1.StatefulSet, pods, claims string) observed {
	old := template("old")
	o := observed{
		set:     set,
		current: revision{"old", &old},
		update:  revision{"new", &set.Spec.Template},
		claims:  map[string]*corev1.PersistentVolumeClaim{},
		now:     now,
	}
	for description := range strings.SplitSeq(pods, ", ") {
		if description != "" {
			o.pods = append(o.pods, newTestPod(set, description))
		}
	}
	for name := range strings.FieldsSeq(claims) {
		o.claims[name] = &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	return o
}

func isUp(pod *corev1.Pod) bool { return reconcile.IsReady(pod) && pod.DeletionTimestamp == nil }

// String reads like "+web-0 new -web-3": what is created and from which
// revision, and what is deleted. Claims stand before their pod.
func (p plan) String() string {
	var own, repair, create, remove []string
	for _, w := range append(slices.Clone(p.Replicas), p.Condemned...) {
		for _, claim := range w.own {
			own = append(own, "own "+claim.Name)
		}
		if w.repair != nil {
			repair = append(repair, "repair "+w.podName)
		}
		for _, claim := range w.claims {
			create = append(create, "+"+claim.Name)
		}
		if w.create != nil {
			create = append(create, "+"+w.podName+" "+revisionOf(w.create))
		}
		if w.delete != nil {
			remove = append(remove, "-"+w.podName)
		}
	}
	for _, pod := range p.Delete {
		remove = append(remove, "-"+pod.Name)
	}
	for _, w := range p.Warnings {
		remove = append(remove, w.reason)
	}
	return strings.Join(slices.Concat(own, repair, create, remove), " ")
}

// deletions are all pods that the plan deletes.
func (p plan) deletions() []*corev1.Pod {
	all := slices.Clone(p.Delete)
	for _, w := range p.Replicas {
		if w.delete != nil {
			all = append(all, w.delete)
		}
	}
	return all
}

func TestDecide(t *testing.T) {
	const nothing = ""
	cases := []struct {
		name   string
		set    *appsv1.StatefulSet
		pods   string
		claims string
		want   string
	}{
		{"the first pod comes first", web(3), "", "", "+web-0 new"},
		{"the next pod waits until the last one is scheduled", web(3), "0 pending", "", nothing},
		{"and until it is ready", web(3), "0 running", "", nothing},
		{"then it is made", web(3), "0 ready", "", "+web-1 new"},
		{"ready is not available before minReadySeconds", slow(web(3), 11), "0 ready", "", nothing},
		{"available is enough", slow(web(3), 10), "0 ready", "", "+web-1 new"},
		{"a pod that got lost is made again, though those above are well", web(3), "0 ready, 2 ready", "", "+web-1 new"},
		{"its name must be free first", web(3), "0 ready, 1 ending, 2 ready", "", nothing},
		{"a lost pod waits for one below it", web(3), "0 running, 2 ready", "", nothing},
		{"ordinals start where they are told to", from(web(3), 5), "", "", "+web-5 new"},
		{"pods below the first ordinal are condemned, when the others are up", from(web(2), 1), "0 ready, 1 ready, 2 ready", "", "-web-0"},
		{"as long as one is missing none is condemned", from(web(2), 1), "0 ready, 1 ready", "", "+web-2 new"},

		{"a failed pod is deleted to be made again", web(2), "0 failed, 1 ready", "", "-web-0"},
		{"so is one that has succeeded, as after a shutdown of its node", web(2), "0 succeeded, 1 ready", "", "-web-0"},
		{"a failed pod that is being deleted is waited for", web(1), "0 failed-ending", "", nothing},
		{"pods above a failed one wait", web(3), "0 failed", "", "-web-0"},

		{"the highest goes first", web(1), "0 ready, 1 ready, 2 ready", "", "-web-2"},
		{"the next waits until it is gone", web(1), "0 ready, 1 ready, 2 ending", "", nothing},
		{"none goes while one that stays is down", web(1), "0 running, 1 ready, 2 ready", "", nothing},
		{"none goes while a lower condemned one is down", web(1), "0 ready, 1 running, 2 ready", "", "-web-2"},
		{"the highest may be down itself", web(1), "0 ready, 1 ready, 2 running", "", "-web-2"},
		{"two that are down wait for a hand", web(1), "0 ready, 1 running, 2 running", "", nothing},
		{"a rollout waits until none is condemned", web(1), "0 ready old, 1 ready old", "", "-web-1"},

		{"a rollout starts at the top", web(3), "0 ready old, 1 ready old, 2 ready old", "", "-web-2"},
		{"the replaced pod comes from the new revision", web(3), "0 ready old, 1 ready old", "", "+web-2 new"},
		{"the next waits until it is available", web(3), "0 ready old, 1 ready old, 2 running", "", nothing},
		{"a pod that ends is not available, though it is ready", web(3), "0 ready old, 1 ready old, 2 ending", "", nothing},
		{"nor is one that does not run any more, whatever its condition says", web(2), "0 ready old, 1 stopped", "", nothing},
		{"then it follows", web(3), "0 ready old, 1 ready old, 2 ready", "", "-web-1"},
		{"a broken pod of an old revision stops everything, as documented", web(2), "0 ready old, 1 running old", "", nothing},
		{"two at once", unavailable(web(4), "2"), "0 ready old, 1 ready old, 2 ready old, 3 ready old", "", "-web-3 -web-2"},
		{"a percentage is rounded down", unavailable(web(4), "74%"), "0 ready old, 1 ready old, 2 ready old, 3 ready old", "", "-web-3 -web-2"},
		{"but not to none", unavailable(web(2), "10%"), "0 ready old, 1 ready old", "", "-web-1"},
		{"a partition keeps those below it", partitioned(web(3), 2), "0 ready old, 1 ready old, 2 ready", "", nothing},
		{"a partition counts from the first ordinal", partitioned(from(web(2), 5), 1), "5 ready old, 6 ready old", "", "-web-6"},
		{"a lost pod below it comes from the current revision", partitioned(web(3), 2), "1 ready old, 2 ready", "", "+web-0 old"},
		{"a lost pod above it comes from the new revision", partitioned(web(3), 2), "0 ready old, 1 ready old", "", "+web-2 new"},
		{"a partition beyond the last pod holds all", partitioned(web(2), 9), "0 ready old, 1 ready old", "", nothing},
		{"OnDelete replaces nothing", onDelete(web(2)), "0 ready old, 1 ready old", "", nothing},
		{"OnDelete makes lost pods from the new revision", onDelete(web(2)), "0 ready old", "", "+web-1 new"},

		{"in parallel all are made", parallel(web(3)), "1 pending", "", "+web-0 new +web-2 new"},
		{"in parallel all condemned go", parallel(web(1)), "0 running, 1 ready, 2 ending, 3 running", "", "-web-3 -web-1"},
		{"in parallel making and ending go together", parallel(web(2)), "0 ready, 5 ready", "", "+web-1 new -web-5"},
		{"in parallel a failed pod does not hold up others", parallel(web(2)), "0 failed", "", "+web-1 new -web-0"},
		{"a parallel rollout keeps the default of one", parallel(web(3)), "0 ready old, 1 ready old, 2 ready old", "", "-web-2"},
		{"a parallel rollout waits for a pod that ends", parallel(web(3)), "0 ready old, 1 ready old, 2 ending", "", nothing},
		{"a parallel rollout waits for the new pod", parallel(web(3)), "0 ready old, 1 ready old, 2 running", "", nothing},
		{"a pod that ends counts as unavailable", unavailable(parallel(web(3)), "2"), "0 ready old, 1 ready old, 2 ending old", "", "-web-1"},
		{"so does one that is missing", unavailable(parallel(web(3)), "2"), "0 ready old, 1 ready old", "", "+web-2 new -web-1"},
		{"old pods that are down anyway go without waiting", parallel(web(4)), "0 running old, 1 ready old, 2 running old, 3 running", "", "-web-2 -web-0"},
		{"their number counts against others", unavailable(parallel(web(4)), "2"), "0 running old, 1 ready old, 2 ready old, 3 ready old", "", "-web-0 -web-3"},
		{"a partition protects even those that are down", partitioned(parallel(web(2)), 1), "0 running old, 1 ready", "", nothing},
		{"a failed old pod is deleted once", parallel(web(2)), "0 ready, 1 failed old", "", "-web-1"},

		{"claims are made before their pod", withClaims(web(1), "data", "logs"), "", "", "+data-web-0 +logs-web-0 +web-0 new"},
		{"a claim that exists is used", withClaims(web(1), "data", "logs"), "", "data-web-0", "+logs-web-0 +web-0 new"},
		{"a pending pod gets back a claim that was lost", withClaims(web(1), "data"), "0 pending", "", "+data-web-0"},
		{"a running one has no need", withClaims(web(1), "data"), "0 running", "", nothing},
		{"the set owns the claims of pods that stay", retaining(withClaims(web(1), "data"), "Delete", "Delete"), "0 ready", "data-web-0", "own data-web-0"},
		{"a condemned pod takes its claim with it", retaining(withClaims(web(0), "data"), "Delete", "Delete"), "0 ready", "data-web-0", "own data-web-0 -web-0"},
		{"all claims are prepared before the first condemned pod goes", retaining(withClaims(web(0), "data"), "Retain", "Delete"), "0 ready, 1 ready", "data-web-0 data-web-1", "own data-web-1 own data-web-0 -web-1"},
		{"nobody owns a claim that is retained", retaining(withClaims(web(0), "data"), "Retain", "Retain"), "0 ready", "data-web-0", "-web-0"},

		{"a set that is being deleted does nothing", deleted(web(3)), "0 ready old", "", nothing},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := decide(observe(c.set, c.pods, c.claims)).String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	cases := []struct {
		name  string
		set   *appsv1.StatefulSet
		pods  string
		want  string // available/ready/current/updated/replicas, current revision
		again time.Duration
	}{
		{"nothing yet", web(2), "", "0/0/0/0/0 old", 0},
		{"pods count from their creation", web(2), "0 pending old", "0/0/1/0/1 old", 0},
		{"in a rollout", web(3), "0 ready old, 1 ready old, 2 running", "2/2/2/1/3 old", 0},
		{"a pod that ends is of no revision", web(3), "0 ready old, 1 ending old, 2 ready", "3/3/1/1/3 old", 0},
		{"the current revision moves when all are ready", web(2), "0 ready, 1 ready", "2/2/2/2/2 new", 0},
		{"not before", web(2), "0 ready, 1 running", "1/1/0/2/2 old", 0},
		{"and not while one too many is there", web(1), "0 ready, 1 ready", "2/2/0/2/2 old", 0},
		{"ready pods become available in time", slow(web(2), 30), "0 ready, 1 ready", "0/2/2/2/2 new", 20 * time.Second},
		{"a set that is being deleted still counts", deleted(web(2)), "0 ready old", "1/1/1/0/1 old", 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := decide(observe(c.set, c.pods, ""))
			s := p.Status
			got := fmt.Sprintf("%d/%d/%d/%d/%d %s", s.AvailableReplicas, s.ReadyReplicas, s.CurrentReplicas, s.UpdatedReplicas, s.Replicas, s.CurrentRevision)
			if got != c.want || p.Again != c.again {
				t.Errorf("got %s, again in %v; want %s, %v", got, p.Again, c.want, c.again)
			}
		})
	}
}

func TestSplitName(t *testing.T) {
	cases := []struct {
		pod, set string
		ordinal  int
		ok       bool
	}{
		{"web-0", "web", 0, true},
		{"my-web-12", "my-web", 12, true},
		{"web", "", 0, false},
		{"web-x", "", 0, false},
		{"web-01", "", 0, false},
		{"web-", "", 0, false},
		{"web-99999999999", "", 0, false},
	}
	for _, c := range cases {
		if set, ordinal, ok := splitName(c.pod); set != c.set || ordinal != c.ordinal || ok != c.ok {
			t.Errorf("%s: %q, %d, %v", c.pod, set, ordinal, ok)
		}
	}
}
