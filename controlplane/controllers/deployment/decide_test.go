package deployment

import (
	"fmt"
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

// web wants n pods of image "new", with maxSurge and maxUnavailable as given.
func web(n int32, surge, unavailable string) *appsv1.Deployment {
	limit := func(s string) *intstr.IntOrString { v := intstr.Parse(s); return &v }
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "web", Generation: 2},
		Spec: appsv1.DeploymentSpec{
			Replicas: &n,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: template("new"),
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: limit(surge), MaxUnavailable: limit(unavailable)},
			},
			RevisionHistoryLimit:    new(int32(10)),
			ProgressDeadlineSeconds: new(int32(600)),
		},
	}
}

func recreate(n int32) *appsv1.Deployment {
	d := web(n, "0", "0")
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	return d
}

func paused(d *appsv1.Deployment) *appsv1.Deployment {
	d.Spec.Paused = true
	return d
}

func TestPausedDeploymentWithAnotherSurgeTouchesNoSet(t *testing.T) {
	d := paused(web(3, "1", "0"))
	before := sets(d, 3, "new 3/3")
	d.Spec.Strategy = web(3, "2", "0").Spec.Strategy
	if p := decide(d, before, nil, now); len(p.Update) > 0 {
		t.Errorf("it writes %v", p.Update[0].Annotations)
	}
}

// sets reads "name size/available" for each set, oldest first, separated by
// commas. The names are images. The sizes were noted when d had was pods.
func sets(d *appsv1.Deployment, was int32, description string) []*appsv1.ReplicaSet {
	var list []*appsv1.ReplicaSet
	if description == "" {
		return nil
	}
	for i, part := range strings.Split(description, ", ") {
		var name string
		var n, up int32
		if _, err := fmt.Sscanf(strings.Replace(part, "/", " ", 1), "%s %d %d", &name, &n, &up); err != nil {
			panic(part + ": " + err.Error())
		}
		set := &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns", Name: name, UID: types.UID(name), Generation: 1,
				CreationTimestamp: metav1.NewTime(now.Add(time.Duration(i-100) * time.Minute)),
				Annotations: map[string]string{
					annotationRevision: fmt.Sprint(i + 1),
					annotationDesired:  fmt.Sprint(was),
					annotationMax:      fmt.Sprint(was + limitsOf(d).surge),
				},
			},
			Spec: appsv1.ReplicaSetSpec{Replicas: &n, Template: template(name)},
			Status: appsv1.ReplicaSetStatus{
				Replicas: n, ReadyReplicas: up, AvailableReplicas: up, ObservedGeneration: 1, TerminatingReplicas: new(int32),
			},
		}
		set.Spec.Template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = name
		list = append(list, set)
	}
	return list
}

// after is what the sets look like when the plan has been carried out.
func after(before []*appsv1.ReplicaSet, p plan) string {
	sizes := map[string]int32{}
	var names []string
	for _, set := range before {
		names = append(names, set.Name)
		sizes[set.Name] = *set.Spec.Replicas
	}
	for _, set := range p.Update {
		sizes[set.Name] = *set.Spec.Replicas
	}
	var words []string
	for _, name := range names {
		words = append(words, fmt.Sprint(name, " ", sizes[name]))
	}
	if p.Create != nil {
		words = append(words, fmt.Sprint("+ ", *p.Create.Spec.Replicas))
	}
	for _, set := range p.Delete {
		words = append(words, "- "+set.Name)
	}
	return strings.Join(words, ", ")
}

func TestDecide(t *testing.T) {
	cases := []struct {
		name string
		d    *appsv1.Deployment
		was  int32 // size of the Deployment when the sets were last resized
		sets string
		want string
	}{
		{"the first set gets all pods at once", web(3, "25%", "25%"), 3, "", "+ 3"},
		{"a new template starts with the surge, and frees what may be unavailable", web(10, "3", "2"), 10, "old 10/10", "old 8, + 3"},
		{"the surge is rounded up, the unavailable down", web(10, "25%", "25%"), 10, "old 10/10", "old 8, + 3"},
		{"without surge it starts with what is freed", web(10, "0", "2"), 10, "old 10/10", "old 8, + 0"},
		{"two limits that round to zero allow one to be unavailable", web(3, "0", "1%"), 3, "old 3/3", "old 2, + 0"},
		{"the new set fills the room that old pods left", web(10, "0", "2"), 10, "old 8/8, new 0/0", "old 8, new 2"},
		{"old pods wait for new ones to be available", web(10, "3", "2"), 10, "old 8/8, new 5/0", "old 8, new 5"},
		{"each available new pod replaces an old one", web(10, "3", "2"), 10, "old 8/8, new 5/3", "old 5, new 5"},
		{"a new pod needs room first", web(10, "0", "1"), 10, "old 9/9, new 1/0", "old 9, new 1"},
		{"unhealthy old pods go first, without waiting", web(10, "3", "2"), 10, "old 10/4, new 3/0", "old 8, new 3"},
		{"a status that lags behind a smaller size is not believed", web(10, "3", "2"), 10, "old 8/10, new 5/1", "old 7, new 5"},
		{"another new template takes over from one that never came up", web(10, "3", "2"), 10, "old 8/8, bad 5/0", "old 8, bad 0, + 0"},
		{"a rollback ends the pods that never came up", web(10, "3", "2"), 10, "new 8/8, bad 5/0", "new 8, bad 0"},
		{"the last old pods go when all new ones are available", web(3, "1", "0"), 3, "old 1/1, new 3/3", "old 0, new 3"},
		{"the last of a rollout without surge", web(1, "0", "1"), 1, "old 1/1, new 0/0", "old 0, new 0"},

		{"growing in peace resizes the one set", web(10, "25%", "25%"), 4, "new 4/4", "new 10"},
		{"growing before the next template is rolled out resizes the old set", web(10, "3", "2"), 4, "old 4/4", "old 10"},
		{"growing amidst a rollout keeps proportions", web(15, "5", "0"), 10, "old 10/10, new 5/0", "old 13, new 7"},
		{"shrinking amidst a rollout keeps proportions", web(5, "5", "0"), 10, "old 10/10, new 5/0", "old 7, new 3"},
		{"shrinking to zero ends all", web(0, "5", "0"), 10, "old 10/10, new 5/0", "old 0, new 0"},
		{"leftovers of rounding go to the largest", web(20, "0", "1"), 10, "a 5/5, b 3/3, new 2/2", "a 10, b 6, new 4"},
		{"a saturated new set ends the old ones", web(10, "3", "2"), 10, "old 3/3, new 10/10", "old 0, new 10"},

		{"a pause stops the rollout", paused(web(10, "3", "2")), 10, "old 8/8, new 5/5", "old 8, new 5"},
		{"a paused Deployment makes no new set", paused(web(10, "3", "2")), 10, "old 10/10", "old 10"},
		{"a paused Deployment still scales", paused(web(20, "0", "2")), 10, "old 8/8, new 2/2", "old 16, new 4"},

		{"recreate ends the old pods first", recreate(3), 3, "old 3/3", "old 0"},
		{"recreate makes the new set when none is left", recreate(3), 3, "old 0/0", "old 0, + 3"},
		{"recreate follows a changed size", recreate(5), 3, "new 3/3", "new 5"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := sets(c.d, c.was, c.sets)
			got := after(before, decide(c.d, before, nil, now))
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestRecreateWaitsForTerminatingPods(t *testing.T) {
	d := recreate(3)
	before := sets(d, 3, "old 0/0")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &metav1.Time{Time: now}}}
	pods := map[types.UID][]*corev1.Pod{"old": {pod}}
	if p := decide(d, before, pods, now); p.Create != nil {
		t.Error("made the new set while an old pod was still ending")
	}
	pod.Status.Phase = corev1.PodSucceeded
	if p := decide(d, before, pods, now); p.Create == nil {
		t.Error("did not make the new set although the old pod has ended")
	}
}

func TestHistoryKeepsTheNewestOldSets(t *testing.T) {
	cases := []struct {
		name       string
		limit      *int32
		sets, want string
	}{
		{"none beyond the limit", new(int32(2)), "a 0/0, b 0/0, new 3/3", ""},
		{"the lowest revisions go", new(int32(1)), "a 0/0, b 0/0, c 0/0, new 3/3", "a b"},
		{"no history", new(int32(0)), "a 0/0, new 3/3", "a"},
		{"unlimited history", nil, "a 0/0, b 0/0, new 3/3", ""},
		{"nothing goes before the rollout is complete", new(int32(0)), "a 0/0, new 3/2", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := web(3, "1", "0")
			d.Spec.RevisionHistoryLimit = c.limit
			var gone []string
			for _, set := range decide(d, sets(d, 3, c.sets), nil, now).Delete {
				gone = append(gone, set.Name)
			}
			if got := strings.Join(gone, " "); got != c.want {
				t.Errorf("deleted %q, want %q", got, c.want)
			}
		})
	}
}

func TestRevisions(t *testing.T) {
	d := web(3, "1", "0")
	d.Annotations = map[string]string{"kubernetes.io/change-cause": "edit", corev1.LastAppliedConfigAnnotation: "{}"}
	d.Spec.MinReadySeconds = 7
	before := sets(d, 3, "new 0/0, a 0/0, b 3/3")
	before[0].Annotations[annotationHistory] = "0"
	p := decide(d, before, nil, now)
	if p.Revision != "4" {
		t.Errorf("the Deployment's revision is %q, want one more than the highest: 4", p.Revision)
	}
	for _, set := range p.Update {
		if set.Name != "new" {
			continue
		}
		got := fmt.Sprint(set.Annotations[annotationRevision], set.Annotations[annotationHistory], set.Annotations["kubernetes.io/change-cause"],
			set.Annotations[corev1.LastAppliedConfigAnnotation], set.Spec.MinReadySeconds)
		if want := fmt.Sprint("4", "0,1", "edit", "", 7); got != want {
			t.Errorf("rolled back set has %q, want %q", got, want)
		}
	}
	if before[0].Annotations[annotationRevision] != "1" {
		t.Error("the cached set was modified")
	}
}

func TestCreatedSetIsTheDeploymentsTemplateWithAHash(t *testing.T) {
	d := web(3, "1", "0")
	set := decide(d, nil, nil, now).Create
	hash := set.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
	if hash == "" || set.Name != "web-"+hash || set.Spec.Selector.MatchLabels[appsv1.DefaultDeploymentUniqueLabelKey] != hash ||
		set.Spec.Template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] != hash || !metav1.IsControlledBy(set, d) {
		t.Errorf("hash %q, set %+v", hash, set)
	}
	if !sameTemplate(&set.Spec.Template, &d.Spec.Template) || len(d.Spec.Template.Labels) != 1 {
		t.Error("the template is not the Deployment's")
	}
	d.Status.CollisionCount = new(int32(1))
	if other := decide(d, nil, nil, now).Create; other.Name == set.Name {
		t.Error("a collision does not change the name")
	}
}

func TestProgress(t *testing.T) {
	condition := func(reason string, status corev1.ConditionStatus, ago time.Duration) *appsv1.DeploymentCondition {
		at := metav1.NewTime(now.Add(-ago))
		return &appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Reason: reason, Status: status, LastUpdateTime: at, LastTransitionTime: at}
	}
	stuck := appsv1.DeploymentStatus{Replicas: 4, UpdatedReplicas: 1, ReadyReplicas: 3, AvailableReplicas: 3}
	cases := []struct {
		name    string
		d       *appsv1.Deployment
		current *appsv1.DeploymentCondition
		before  appsv1.DeploymentStatus
		sets    string
		want    string // reason, status
		again   time.Duration
	}{
		{"a new set starts the clock", web(3, "1", "0"), condition(reasonSetAvailable, "True", time.Hour), stuck, "old 3/3", "NewReplicaSetCreated True", 600 * time.Second},
		{"a set that was there starts the clock", web(3, "1", "0"), nil, stuck, "old 3/3, new 1/0", "FoundNewReplicaSet True", 600 * time.Second},
		{"a pod that becomes available restarts it", web(3, "1", "0"), condition(reasonSetUpdated, "True", 599*time.Second), stuck, "old 3/3, new 1/1", "ReplicaSetUpdated True", 600 * time.Second},
		{"nothing new lets it run", web(3, "1", "0"), condition(reasonSetUpdated, "True", 400*time.Second), stuck, "old 3/3, new 1/0", "ReplicaSetUpdated True", 200 * time.Second},
		{"the deadline ends it", web(3, "1", "0"), condition(reasonSetUpdated, "True", 600*time.Second), stuck, "old 3/3, new 1/0", "ProgressDeadlineExceeded False", 0},
		{"a missed deadline stays missed", web(3, "1", "0"), condition(reasonTimedOut, "False", time.Second), stuck, "old 3/3, new 1/0", "ProgressDeadlineExceeded False", 0},
		{"late progress is progress", web(3, "1", "0"), condition(reasonTimedOut, "False", time.Hour), stuck, "old 3/3, new 1/1", "ReplicaSetUpdated True", 600 * time.Second},
		{"success ends it", web(3, "1", "0"), condition(reasonSetUpdated, "True", time.Second), stuck, "old 0/0, new 3/3", "NewReplicaSetAvailable True", 0},
		{"success does not expire", web(3, "1", "0"), condition(reasonSetAvailable, "True", time.Hour), appsv1.DeploymentStatus{}, "new 3/2", "NewReplicaSetAvailable True", 0},
		{"a pause stops it", paused(web(3, "1", "0")), condition(reasonSetUpdated, "True", time.Hour), stuck, "old 3/3, new 1/0", "DeploymentPaused Unknown", 0},
		{"the end of a pause starts it anew", web(3, "1", "0"), condition(reasonPaused, "Unknown", time.Hour), stuck, "old 3/3, new 1/0", "DeploymentResumed Unknown", 600 * time.Second},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.d.Status = c.before
			if c.current != nil {
				c.d.Status.Conditions = []appsv1.DeploymentCondition{*c.current}
			}
			p := decide(c.d, sets(c.d, 3, c.sets), nil, now)
			got := find(p.Status.Conditions, appsv1.DeploymentProgressing)
			if got == nil || got.Reason+" "+string(got.Status) != c.want {
				t.Fatalf("got %+v, want %s", got, c.want)
			}
			if p.Again != c.again {
				t.Errorf("looks again after %v, want %v", p.Again, c.again)
			}
		})
	}
}

func TestWithoutDeadlineThereIsNoProgressCondition(t *testing.T) {
	d := web(3, "1", "0")
	d.Spec.ProgressDeadlineSeconds = nil
	d.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentProgressing}}
	if p := decide(d, sets(d, 3, "new 3/3"), nil, now); find(p.Status.Conditions, appsv1.DeploymentProgressing) != nil {
		t.Errorf("conditions %+v", p.Status.Conditions)
	}
}

func TestFailureOfTheNewSetIsTheDeployments(t *testing.T) {
	d := web(3, "1", "0")
	s := sets(d, 3, "old 3/3, new 1/0")
	for _, set := range s {
		set.Status.Conditions = []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: "True", Message: set.Name}}
	}
	failure := find(decide(d, s, nil, now).Status.Conditions, appsv1.DeploymentReplicaFailure)
	if failure == nil || failure.Message != "new" {
		t.Errorf("failure %+v", failure)
	}
}

func TestWhatIsWrittenWithoutDelay(t *testing.T) {
	status := func(replicas, updated, available, terminating int32, conditions ...appsv1.DeploymentCondition) appsv1.DeploymentStatus {
		return appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: replicas, UpdatedReplicas: updated, AvailableReplicas: available, TerminatingReplicas: &terminating, Conditions: conditions}
	}
	progress := func(reason string, status corev1.ConditionStatus) appsv1.DeploymentCondition {
		return appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Reason: reason, Status: status}
	}
	available := func(message string) appsv1.DeploymentCondition {
		return appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Reason: reasonSetAvailable, Status: "True", Message: message}
	}
	collided := status(3, 0, 3, 0)
	collided.CollisionCount = new(int32(1))
	cases := []struct {
		name     string
		old, new appsv1.DeploymentStatus
		want     bool
	}{
		{"the rollout is complete", status(4, 3, 4, 0), status(3, 3, 3, 1), true},
		{"one of its pods is lost", status(3, 3, 3, 0), status(3, 3, 2, 0), true},
		{"one more pod is of the new template", status(4, 1, 4, 0), status(4, 2, 4, 0), false},
		{"the last old pod has ended", status(3, 3, 3, 1), status(3, 3, 3, 0), false},
		{"it goes on", status(3, 0, 3, 0, progress(reasonSetCreated, "True")), status(4, 1, 3, 0, progress(reasonSetUpdated, "True")), false},
		{"it has missed its deadline", status(4, 1, 3, 0, progress(reasonSetUpdated, "True")), status(4, 1, 3, 0, progress(reasonTimedOut, "False")), true},
		{"the first condition is known", status(3, 0, 3, 0), status(3, 0, 3, 0, progress(reasonSetCreated, "True")), true},
		{"a rollout begins", status(3, 3, 3, 0, progress(reasonSetAvailable, "True")), status(4, 1, 3, 0, progress(reasonSetUpdated, "True")), true},
		{"a rollout without pods is complete at once", status(0, 0, 0, 0, available("a")), status(0, 0, 0, 0, available("b")), true},
		{"a set is created", status(3, 0, 3, 0, progress(reasonSetUpdated, "True")), status(3, 0, 3, 0, progress(reasonSetCreated, "True")), true},
		{"the name of the new set is taken", status(3, 0, 3, 0), collided, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: 1}, Spec: appsv1.DeploymentSpec{Replicas: new(int32(3))}, Status: c.old}
			if got := newsOf(d, c.new); (got == reconcile.Urgent) != c.want {
				t.Errorf("news: %v", got)
			}
		})
	}
}
