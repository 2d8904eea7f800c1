package endpoints

//lint:file-ignore SA1019 programs still read Endpoints

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

type world struct {
	*testcluster.Cluster
	t *testing.T
}

func inWorld(t *testing.T, before, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		w := world{testcluster.New(t), t}
		before(w)
		c, err := New(w.Env("endpoint-controller"))
		if err != nil {
			t.Fatal(err)
		}
		w.Run(c)
		test(w)
	})
}

func nothing(world) {}

func (w world) addService(edits ...func(*corev1.Service)) {
	w.t.Helper()
	testcluster.Must[*corev1.Service](w.t)(w.Client.CoreV1().Services("ns").Create(w.t.Context(), service(edits...), metav1.CreateOptions{}))
}

func (w world) addPod(name, ip string, edits ...func(*corev1.Pod)) *corev1.Pod {
	w.t.Helper()
	p := pod(name, ip, edits...)
	p.UID = ""
	return testcluster.Must[*corev1.Pod](w.t)(w.Client.CoreV1().Pods("ns").Create(w.t.Context(), p, metav1.CreateOptions{}))
}

// addByHand makes Endpoints as a user would.
func (w world) addByHand(name string, labels map[string]string) {
	w.t.Helper()
	e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: labels}, Subsets: []corev1.EndpointSubset{subset("192.0.2.1", "", "80")}}
	testcluster.Must[*corev1.Endpoints](w.t)(w.Client.CoreV1().Endpoints("ns").Create(w.t.Context(), e, metav1.CreateOptions{}))
}

func (w world) get(name string) *corev1.Endpoints {
	w.t.Helper()
	e, err := w.Client.CoreV1().Endpoints("ns").Get(w.t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return testcluster.Must[*corev1.Endpoints](w.t)(e, err)
}

func (w world) expect(name, want string) {
	w.t.Helper()
	w.Pass(time.Second)
	got := "none"
	if e := w.get(name); e != nil {
		got = show(e.Subsets)
	}
	if got != want {
		w.t.Errorf("%s: %s, want %s", name, got, want)
	}
}

func (w world) deleteService(name string) {
	w.t.Helper()
	if err := w.Client.CoreV1().Services("ns").Delete(w.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func TestEndpointsFollowPods(t *testing.T) {
	inWorld(t, nothing, func(w world) {
		w.addService()
		w.expect("web", "")
		a := w.addPod("a", "10.0.0.1")
		w.expect("web", "[10.0.0.1 | -]:80")
		b := w.addPod("b", "10.0.0.2", unready)
		w.expect("web", "[10.0.0.1 | 10.0.0.2]:80")
		w.SetReady(b, true)
		w.expect("web", "[10.0.0.1 10.0.0.2 | -]:80")
		if err := w.Client.CoreV1().Pods("ns").Delete(t.Context(), a.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.expect("web", "[10.0.0.2 | -]:80")
		w.SetReady(b, false)
		w.expect("web", "[- | 10.0.0.2]:80")
		w.SetPhase(b, corev1.PodFailed)
		w.expect("web", "")
	})
}

func TestLabelsOfTheServiceAreFollowed(t *testing.T) {
	inWorld(t, nothing, func(w world) {
		w.addService(func(s *corev1.Service) { s.Labels = map[string]string{"tier": "front"} })
		w.Pass(time.Second)
		s := testcluster.Must[*corev1.Service](t)(w.Client.CoreV1().Services("ns").Get(t.Context(), "web", metav1.GetOptions{}))
		s.Labels = map[string]string{"tier": "back"}
		testcluster.Must[*corev1.Service](t)(w.Client.CoreV1().Services("ns").Update(t.Context(), s, metav1.UpdateOptions{}))
		w.Pass(time.Second)
		if got := w.get("web").Labels["tier"]; got != "back" {
			t.Errorf("label %q", got)
		}
	})
}

func TestEndpointsGoWithTheirService(t *testing.T) {
	inWorld(t, nothing, func(w world) {
		w.addService()
		w.addService(func(s *corev1.Service) { s.Name, s.Spec.Selector = "manual", nil })
		w.addByHand("manual", nil)
		w.expect("manual", "[192.0.2.1 | -]:80")
		w.deleteService("web")
		w.deleteService("manual")
		w.expect("web", "none")
		w.expect("manual", "none")
	})
}

func TestEndpointsThatNeverHadAServiceStay(t *testing.T) {
	inWorld(t, func(w world) { w.addByHand("early", nil) }, func(w world) {
		w.addByHand("late", nil)
		w.Pass(time.Hour)
		w.expect("early", "[192.0.2.1 | -]:80")
		w.expect("late", "[192.0.2.1 | -]:80")
	})
}

func TestEndpointsLeftBehindByADeletionThatNobodySawAreRemoved(t *testing.T) {
	inWorld(t, func(w world) { w.addByHand("web", map[string]string{managedByLabel: managedBy}) }, func(w world) {
		w.expect("web", "none")
	})
}

func TestServicesWithoutSelectorAreLeftAlone(t *testing.T) {
	inWorld(t, nothing, func(w world) {
		w.addPod("a", "10.0.0.1")
		w.addService(func(s *corev1.Service) { s.Name, s.Spec.Selector = "manual", nil })
		w.addService(func(s *corev1.Service) { s.Name, s.Spec.Type = "outside", corev1.ServiceTypeExternalName })
		w.expect("manual", "none")
		w.expect("outside", "none")
		w.addByHand("manual", nil)
		w.expect("manual", "[192.0.2.1 | -]:80")
	})
}

func TestForeignEditsAreUndone(t *testing.T) {
	inWorld(t, nothing, func(w world) {
		w.addService()
		w.addPod("a", "10.0.0.1")
		w.expect("web", "[10.0.0.1 | -]:80")
		edited := w.get("web")
		edited.Subsets = nil
		testcluster.Must[*corev1.Endpoints](t)(w.Client.CoreV1().Endpoints("ns").Update(t.Context(), edited, metav1.UpdateOptions{}))
		w.expect("web", "[10.0.0.1 | -]:80")
		if err := w.Client.CoreV1().Endpoints("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.expect("web", "[10.0.0.1 | -]:80")
	})
}

func TestNothingIsWrittenWithoutNeed(t *testing.T) {
	inWorld(t, nothing, func(w world) {
		w.addService()
		p := w.addPod("a", "10.0.0.1")
		w.Pass(time.Second)
		before := w.Writes("endpoints")
		p.Annotations = map[string]string{"seen": "yes"}
		testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Update(t.Context(), p, metav1.UpdateOptions{}))
		w.addPod("other", "10.0.0.9", func(p *corev1.Pod) { p.Labels = nil })
		w.Pass(time.Hour)
		if n := w.Writes("endpoints"); before == 0 || n != before {
			t.Errorf("%d writes, then %d", before, n-before)
		}
	})
}

func TestEndpointsThatAreTooManyAreCutOnceAndSaySo(t *testing.T) {
	var pods []*corev1.Pod
	for i := range 1200 {
		pods = append(pods, pod(fmt.Sprint("p", i), fmt.Sprintf("10.0.%d.%d", i/200, i%200+1)))
	}
	cut := decide(service(), pods, nil, time.Time{})
	if len(cut.Subsets[0].Addresses) != 1000 || cut.Annotations["endpoints.kubernetes.io/over-capacity"] != "truncated" {
		t.Errorf("%d addresses, annotations %v", len(cut.Subsets[0].Addresses), cut.Annotations)
	}
	if decide(service(), append(pods, pod("z", "10.1.0.1", unready)), cut, time.Time{}) != nil {
		t.Error("written again for an address beyond the thousand")
	}
	if whole := decide(service(), pods[:1000], cut, time.Time{}); whole == nil || len(whole.Annotations) != 0 {
		t.Errorf("a thousand are still called too many: %v", whole)
	}
}

func TestFailuresAreReportedAndTriedAgain(t *testing.T) {
	inWorld(t, nothing, func(w world) {
		w.Refuse(func(a kubetesting.Action) error {
			if a.Matches("create", "endpoints") {
				return apierrors.NewForbidden(corev1.Resource("endpoints"), "web", errors.New("no"))
			}
			return nil
		})
		w.addService()
		w.Pass(time.Second)
		list := testcluster.Must[*corev1.EventList](t)(w.Client.CoreV1().Events("ns").List(t.Context(), metav1.ListOptions{}))
		if len(list.Items) != 1 || list.Items[0].Reason != "FailedToCreateEndpoint" {
			t.Errorf("events %+v", list.Items)
		}
		w.Refuse(nil)
		w.Pass(time.Minute)
		w.expect("web", "")
	})
}

func TestNamespaceThatTerminatesGetsNoEndpoints(t *testing.T) {
	inWorld(t, nothing, func(w world) {
		attempts := 0
		w.Refuse(func(a kubetesting.Action) error {
			if !a.Matches("create", "endpoints") {
				return nil
			}
			attempts++
			err := apierrors.NewForbidden(corev1.Resource("endpoints"), "", errors.New("namespace is being terminated"))
			err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
			return err
		})
		w.addService()
		w.Pass(time.Hour)
		list := testcluster.Must[*corev1.EventList](t)(w.Client.CoreV1().Events("ns").List(t.Context(), metav1.ListOptions{}))
		if attempts != 1 || len(list.Items) != 0 {
			t.Errorf("%d attempts, %d events", attempts, len(list.Items))
		}
	})
}

func TestDecideWritesLabelsAndAnnotations(t *testing.T) {
	headless := func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }
	labelled := func(s *corev1.Service) { s.Labels = map[string]string{"tier": "front"} }
	pods := []*corev1.Pod{pod("a", "10.0.0.1")}
	trigger := time.Date(2026, 3, 1, 10, 0, 0, 500, time.UTC)
	const triggered = "endpoints.kubernetes.io/last-change-trigger-time=2026-03-01T10:00:00.0000005Z"
	cases := []struct {
		name    string
		service *corev1.Service
		current *corev1.Endpoints
		trigger time.Time
		want    string // "" is no write
	}{
		{"new ones carry the labels of the Service and the manager", service(labelled), nil, trigger,
			"endpoints.kubernetes.io/managed-by=endpoint-controller tier=front; " + triggered},
		{"those of a headless Service say so", service(headless), nil, time.Time{},
			"endpoints.kubernetes.io/managed-by=endpoint-controller service.kubernetes.io/headless=; "},
		{"that label is ours alone", service(func(s *corev1.Service) { s.Labels = map[string]string{corev1.IsHeadlessService: ""} }), nil, time.Time{},
			"endpoints.kubernetes.io/managed-by=endpoint-controller; "},
		{"right ones are not written", service(labelled), decide(service(labelled), pods, nil, trigger), time.Time{}, ""},
		{"right ones in another order are not written", service(), shuffled(decide(service(), append(pods, pod("b", "10.0.0.2")), nil, trigger)), time.Time{}, ""},
		{"a change without a known trigger drops the old one", service(), decide(service(labelled), pods, nil, trigger), time.Time{},
			"endpoints.kubernetes.io/managed-by=endpoint-controller; "},
		{"annotations of others stay", service(), &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"theirs": "1", "endpoints.kubernetes.io/over-capacity": "truncated"}}}, trigger,
			"endpoints.kubernetes.io/managed-by=endpoint-controller; " + triggered + " theirs=1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			pods := pods[:1:1]
			if c.current != nil && len(c.current.Subsets) > 0 && len(c.current.Subsets[0].Addresses) == 2 {
				pods = append(pods, pod("b", "10.0.0.2"))
			}
			got := ""
			if e := decide(c.service, pods, c.current, c.trigger); e != nil {
				got = pairs(e.Labels) + "; " + pairs(e.Annotations)
			}
			if got != c.want {
				t.Errorf("\n got %q\nwant %q", got, c.want)
			}
		})
	}
}

func shuffled(e *corev1.Endpoints) *corev1.Endpoints {
	slices.Reverse(e.Subsets[0].Addresses)
	return e
}

func pairs(m map[string]string) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		words = append(words, key+"="+m[key])
	}
	return strings.Join(words, " ")
}
