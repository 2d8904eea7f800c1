package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"weft.dev/weft/controlplane/controllers/testcluster"
	"weft.dev/weft/controlplane/reconcile"
)

var daemonSet = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

// owner is a DaemonSet "web" whose only container has the given image.
func owner(image string) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "web-uid", Annotations: map[string]string{"kubernetes.io/change-cause": "try " + image}},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
			},
		},
	}
}

func versioned(ds *appsv1.DaemonSet) reconcile.Versioned {
	return reconcile.Versioned{
		Object:     ds,
		Kind:       daemonSet,
		Template:   &ds.Spec.Template,
		Collisions: ds.Status.CollisionCount,
		HashLabel:  appsv1.DefaultDaemonSetUniqueLabelKey,
	}
}

// revision is an existing one, named after its image.
func revision(number int64, image string) *appsv1.ControllerRevision {
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("%s-%d", image, number)},
		Data:       runtime.RawExtension{Raw: reconcile.RevisionData(&owner(image).Spec.Template)},
		Revision:   number,
	}
}

func TestHistoryFindsTheRevisionOfTheTemplate(t *testing.T) {
	cases := []struct {
		name      string
		image     string
		revisions []*appsv1.ControllerRevision
		current   string // revision, and name if it exists
		equal     int
		old       string
	}{
		{"the first template gets the first revision", "v1", nil, "1 new", 1, ""},
		{"a new template gets the next revision", "v3", []*appsv1.ControllerRevision{revision(2, "v2"), revision(1, "v1")}, "3 new", 1, "v1-1 v2-2"},
		{"a template that stays keeps its revision", "v2", []*appsv1.ControllerRevision{revision(2, "v2"), revision(1, "v1")}, "2 v2-2", 1, "v1-1"},
		{"a rollback makes the old revision the newest", "v1", []*appsv1.ControllerRevision{revision(1, "v1"), revision(7, "v2")}, "8 v1-1", 1, "v2-7"},
		{"of several with the template, the newest is taken", "v1", []*appsv1.ControllerRevision{revision(4, "v1"), revision(3, "v1"), revision(2, "v2")}, "4 v1-4", 2, "v2-2 v1-3"},
		{"of two with the same number, one has to move", "v1", []*appsv1.ControllerRevision{revision(2, "v1"), revision(2, "v2")}, "3 v1-2", 1, "v2-2"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := reconcile.NewHistory(versioned(owner(c.image)), c.revisions)
			name := h.Current.Name
			if strings.HasPrefix(name, "web-") {
				name = "new"
			}
			if got := fmt.Sprintf("%d %s", h.Current.Revision, name); got != c.current {
				t.Errorf("current is %s, want %s", got, c.current)
			}
			if len(h.Equal) != c.equal || !slices.Contains(h.Equal, h.Current) {
				t.Errorf("%d have the template, want %d, the current one among them", len(h.Equal), c.equal)
			}
			if got := names(h.Old); got != c.old {
				t.Errorf("old are %q, want %q", got, c.old)
			}
		})
	}
}

func names(revisions []*appsv1.ControllerRevision) string {
	var all []string
	for _, r := range revisions {
		all = append(all, r.Name)
	}
	return strings.Join(all, " ")
}

func TestNewRevisionIsWhatKubectlExpects(t *testing.T) {
	ds := owner("v1")
	ds.Spec.Template.Spec.TerminationGracePeriodSeconds = new(int64(1<<62 + 1))
	r := reconcile.NewHistory(versioned(ds), nil).Current
	const want = `{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"web"}},` +
		`"spec":{"containers":[{"image":"v1","name":"c","resources":{}}],"terminationGracePeriodSeconds":4611686018427387905}}}}`
	if string(r.Data.Raw) != want {
		t.Errorf("data\n got %s\nwant %s", r.Data.Raw, want)
	}
	hash := r.Labels["controller-revision-hash"]
	if hash == "" || r.Name != "web-"+hash || r.Labels["app"] != "web" {
		t.Errorf("name %s, labels %v", r.Name, r.Labels)
	}
	if !metav1.IsControlledBy(r, ds) || r.Annotations["kubernetes.io/change-cause"] != "try v1" {
		t.Errorf("owners %v, annotations %v", r.OwnerReferences, r.Annotations)
	}
	template, err := reconcile.TemplateOf(r)
	if err != nil || *template.Spec.TerminationGracePeriodSeconds != 1<<62+1 || template.Spec.Containers[0].Image != "v1" {
		t.Errorf("template comes back as %+v, %v", template, err)
	}
}

func TestTemplateInOtherWordsIsNotNew(t *testing.T) {
	older := revision(1, "v1")
	older.Data.Raw = []byte(strings.Replace(string(older.Data.Raw), `"metadata":{`, `"metadata":{"creationTimestamp":null,`, 1))
	if h := reconcile.NewHistory(versioned(owner("v1")), []*appsv1.ControllerRevision{older}); h.Current != older {
		t.Errorf("made %s although %s has the same template", h.Current.Name, older.Name)
	}
}

func TestCollisionCountChangesTheName(t *testing.T) {
	ds := owner("v1")
	seen := map[string]bool{}
	for _, collisions := range []*int32{nil, new(int32(0)), new(int32(1)), new(int32(2))} {
		ds.Status.CollisionCount = collisions
		seen[reconcile.NewHistory(versioned(ds), nil).Current.Name] = true
	}
	if len(seen) != 4 {
		t.Errorf("names %v, want one for each count", seen)
	}
}

func TestLongNamesAreCut(t *testing.T) {
	ds := owner("v1")
	ds.Name = strings.Repeat("n", 253)
	if name := reconcile.NewHistory(versioned(ds), nil).Current.Name; len(name) != 253 {
		t.Errorf("name has %d characters", len(name))
	}
}

func TestHashOfARevisionWithoutLabelIsItsName(t *testing.T) {
	h := reconcile.NewHistory(versioned(owner("v1")), []*appsv1.ControllerRevision{revision(1, "v1")})
	if got := h.HashOf(h.Current); got != "v1-1" {
		t.Errorf("got %q", got)
	}
}

func TestSurplusKeepsTheNewestAndTheLive(t *testing.T) {
	all := []*appsv1.ControllerRevision{revision(1, "v1"), revision(2, "v2"), revision(3, "v3"), revision(4, "v4"), revision(5, "v5")}
	cases := []struct {
		name  string
		limit int
		live  string
		want  string
	}{
		{"all fit", 4, "", ""},
		{"the oldest go", 2, "", "v1-1 v2-2"},
		{"a live one stays and does not count", 2, "v1-1", "v2-2"},
		{"a limit of zero keeps the live ones", 0, "v2-2 v4-4", "v1-1 v3-3"},
		{"a negative limit is zero", -1, "", "v1-1 v2-2 v3-3 v4-4"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := reconcile.NewHistory(versioned(owner("v5")), all)
			surplus := h.Surplus(c.limit, func(r *appsv1.ControllerRevision) bool { return strings.Contains(c.live, r.Name) })
			if got := names(surplus); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// --- API calls ---

// inCluster runs test with the revisions of an in-memory API server. read
// returns the history of ds as the cache has it.
func inCluster(t *testing.T, test func(c *testcluster.Cluster, r *reconcile.Revisions, read func(ds *appsv1.DaemonSet) reconcile.History)) {
	synctest.Test(t, func(t *testing.T) {
		c := testcluster.New(t)
		r, err := reconcile.NewRevisions(c.Env("test"), &reconcile.Fence{})
		if err != nil {
			t.Fatal(err)
		}
		c.Run()
		test(c, r, func(ds *appsv1.DaemonSet) reconcile.History {
			t.Helper()
			c.Pass(time.Second)
			revisions, err := r.Claim(t.Context(), reconcile.Claimant{
				Object:   ds,
				Kind:     daemonSet,
				Selector: labels.SelectorFromSet(ds.Spec.Selector.MatchLabels),
				Live:     func(context.Context) (metav1.Object, error) { return ds, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			return reconcile.NewHistory(versioned(ds), revisions)
		})
		c.Pass(time.Second) // the informer takes the last events
	})
}

func list(t *testing.T, c *testcluster.Cluster) string {
	t.Helper()
	all := testcluster.Must[*appsv1.ControllerRevisionList](t)(c.Client.AppsV1().ControllerRevisions("ns").List(t.Context(), metav1.ListOptions{}))
	var lines []string
	for _, r := range all.Items {
		template, err := reconcile.TemplateOf(&r)
		if err != nil {
			t.Fatal(err)
		}
		owner := "orphan"
		if ref := metav1.GetControllerOf(&r); ref != nil {
			owner = ref.Name
		}
		lines = append(lines, fmt.Sprintf("%d %s of %s", r.Revision, template.Spec.Containers[0].Image, owner))
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

func TestHistoryThroughUpdatesAndRollback(t *testing.T) {
	inCluster(t, func(c *testcluster.Cluster, r *reconcile.Revisions, read func(*appsv1.DaemonSet) reconcile.History) {
		for _, image := range []string{"v1", "v2", "v3", "v3", "v1"} {
			if err := r.Ensure(t.Context(), read(owner(image))); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := list(t, c), "2 v2 of web, 3 v3 of web, 4 v1 of web"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		h := read(owner("v1"))
		for range 2 { // the second time they are gone
			if err := r.Remove(t.Context(), h.Surplus(1, func(*appsv1.ControllerRevision) bool { return false })); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := list(t, c), "3 v3 of web, 4 v1 of web"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

func TestOrphanedRevisionIsAdoptedAndUsed(t *testing.T) {
	inCluster(t, func(c *testcluster.Cluster, r *reconcile.Revisions, read func(*appsv1.DaemonSet) reconcile.History) {
		orphan := revision(6, "v1")
		orphan.Labels = map[string]string{"app": "web"}
		testcluster.Must[*appsv1.ControllerRevision](t)(c.Client.AppsV1().ControllerRevisions("ns").Create(t.Context(), orphan, metav1.CreateOptions{}))
		if err := r.Ensure(t.Context(), read(owner("v1"))); err != nil {
			t.Fatal(err)
		}
		if got, want := list(t, c), "6 v1 of web"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestRevisionIsNotMadeTwiceOnAStaleCache(t *testing.T) {
	inCluster(t, func(c *testcluster.Cluster, r *reconcile.Revisions, read func(*appsv1.DaemonSet) reconcile.History) {
		before := read(owner("v1"))
		if err := r.Ensure(t.Context(), before); err != nil {
			t.Fatal(err)
		}
		if err := r.Ensure(t.Context(), before); !errors.Is(err, reconcile.ErrStale) {
			t.Errorf("got %v, want that the cache is stale", err)
		}
	})
}

func TestOrphanThatTheCacheDoesNotShowIsAwaited(t *testing.T) {
	inCluster(t, func(c *testcluster.Cluster, r *reconcile.Revisions, read func(*appsv1.DaemonSet) reconcile.History) {
		before := read(owner("v1"))
		orphan := before.Current.DeepCopy()
		orphan.OwnerReferences = nil // its owner, of the same name, was deleted a moment ago
		testcluster.Must[*appsv1.ControllerRevision](t)(c.Client.AppsV1().ControllerRevisions("ns").Create(t.Context(), orphan, metav1.CreateOptions{}))
		if err := r.Ensure(t.Context(), before); !errors.Is(err, reconcile.ErrStale) {
			t.Fatalf("got %v, want that the cache is stale", err)
		}
		if err := r.Ensure(t.Context(), read(owner("v1"))); err != nil {
			t.Fatal(err)
		}
		if got, want := list(t, c), "1 v1 of web"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestTakenNameIsACollision(t *testing.T) {
	inCluster(t, func(c *testcluster.Cluster, r *reconcile.Revisions, read func(*appsv1.DaemonSet) reconcile.History) {
		ds := owner("v1")
		other := revision(1, "v2")
		other.Name = read(ds).Current.Name
		testcluster.Must[*appsv1.ControllerRevision](t)(c.Client.AppsV1().ControllerRevisions("ns").Create(t.Context(), other, metav1.CreateOptions{}))
		if err := r.Ensure(t.Context(), read(ds)); !errors.Is(err, reconcile.ErrCollision) {
			t.Fatalf("got %v, want a collision", err)
		}
		ds.Status.CollisionCount = new(int32(1))
		if err := r.Ensure(t.Context(), read(ds)); err != nil {
			t.Fatal(err)
		}
		if got, want := list(t, c), "1 v1 of web, 1 v2 of orphan"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}
