package endpointslicemirroring

//lint:file-ignore SA1019 users still write Endpoints

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

type world struct {
	*testcluster.Cluster
	t *testing.T
}

func inWorld(t *testing.T, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		w := world{testcluster.New(t), t}
		c, err := New(w.Env("endpointslicemirroring-controller"))
		if err != nil {
			t.Fatal(err)
		}
		w.Run(c)
		test(w)
	})
}

func (w world) addService() {
	w.t.Helper()
	testcluster.Must[*corev1.Service](w.t)(w.Client.CoreV1().Services("ns").Create(w.t.Context(), service(), metav1.CreateOptions{}))
}

func (w world) addEndpoints(subsets ...string) {
	w.t.Helper()
	e := byHand(subsets...)
	e.UID = ""
	testcluster.Must[*corev1.Endpoints](w.t)(w.Client.CoreV1().Endpoints("ns").Create(w.t.Context(), e, metav1.CreateOptions{}))
}

func (w world) editEndpoints(subsets ...string) {
	w.t.Helper()
	api := w.Client.CoreV1().Endpoints("ns")
	e := testcluster.Must[*corev1.Endpoints](w.t)(api.Get(w.t.Context(), "web", metav1.GetOptions{}))
	e.Subsets = byHand(subsets...).Subsets
	testcluster.Must[*corev1.Endpoints](w.t)(api.Update(w.t.Context(), e, metav1.UpdateOptions{}))
}

func (w world) slices() []discoveryv1.EndpointSlice {
	w.t.Helper()
	return testcluster.Must[*discoveryv1.EndpointSliceList](w.t)(w.Client.DiscoveryV1().EndpointSlices("ns").List(w.t.Context(), metav1.ListOptions{})).Items
}

// expect compares all slices, without their names.
func (w world) expect(want string) {
	w.t.Helper()
	w.Pass(2 * time.Second)
	var all []string
	for _, s := range w.slices() {
		s.Name = ""
		all = append(all, show(&s))
	}
	slices.Sort(all)
	if got := strings.Join(all, " "); got != want {
		w.t.Errorf("slices %s, want %s", got, want)
	}
}

func TestMirrorFollowsEndpoints(t *testing.T) {
	inWorld(t, func(w world) {
		w.addEndpoints("10.0.0.1:80")
		w.expect("")
		w.addService()
		w.expect("[10.0.0.1]:80")
		w.editEndpoints("10.0.0.1 !10.0.0.2:80", "fd00::1:90")
		w.expect("[10.0.0.1 !10.0.0.2]:80 [fd00::1]:90")
		w.editEndpoints("10.0.0.3:81")
		w.expect("[10.0.0.3]:81")
		before := w.Writes("endpointslices")
		w.Pass(time.Hour)
		if n := w.Writes("endpointslices") - before; n != 0 {
			t.Errorf("%d writes while nothing happened", n)
		}
		if err := w.Client.CoreV1().Endpoints("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.expect("")
	})
}

func TestMirrorGoesWhenTheServiceSelectsPodsOrGoes(t *testing.T) {
	inWorld(t, func(w world) {
		w.addService()
		w.addEndpoints("10.0.0.1:80")
		w.expect("[10.0.0.1]:80")
		s := testcluster.Must[*corev1.Service](t)(w.Client.CoreV1().Services("ns").Get(t.Context(), "web", metav1.GetOptions{}))
		s.Spec.Selector = map[string]string{"app": "web"}
		s = testcluster.Must[*corev1.Service](t)(w.Client.CoreV1().Services("ns").Update(t.Context(), s, metav1.UpdateOptions{}))
		w.expect("")
		s.Spec.Selector = nil
		testcluster.Must[*corev1.Service](t)(w.Client.CoreV1().Services("ns").Update(t.Context(), s, metav1.UpdateOptions{}))
		w.expect("[10.0.0.1]:80")
		if err := w.Client.CoreV1().Services("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.expect("")
	})
}

func TestForeignEditsOfAMirrorAreUndone(t *testing.T) {
	inWorld(t, func(w world) {
		w.addService()
		w.addEndpoints("10.0.0.1:80")
		w.expect("[10.0.0.1]:80")
		api := w.Client.DiscoveryV1().EndpointSlices("ns")
		slice := w.slices()[0]
		slice.Endpoints = nil
		testcluster.Must[*discoveryv1.EndpointSlice](t)(api.Update(t.Context(), &slice, metav1.UpdateOptions{}))
		w.expect("[10.0.0.1]:80")
		if err := api.Delete(t.Context(), slice.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.expect("[10.0.0.1]:80")
		// A slice that is given away is not ours any more, and ours is missing.
		slice = w.slices()[0]
		slice.Labels = map[string]string{discoveryv1.LabelManagedBy: "me"}
		testcluster.Must[*discoveryv1.EndpointSlice](t)(api.Update(t.Context(), &slice, metav1.UpdateOptions{}))
		w.expect("[10.0.0.1]:80 [10.0.0.1]:80")
	})
}

func TestSlicesOfOthersAreNotTouched(t *testing.T) {
	inWorld(t, func(w world) {
		own := newSlice(byHand(), discoveryv1.AddressTypeIPv4, nil, nil)
		own.Name, own.Labels[discoveryv1.LabelManagedBy] = "own", "me"
		testcluster.Must[*discoveryv1.EndpointSlice](t)(w.Client.DiscoveryV1().EndpointSlices("ns").Create(t.Context(), own, metav1.CreateOptions{}))
		w.addService()
		w.addEndpoints("10.0.0.1:80")
		w.expect("[10.0.0.1]:80 []:")
	})
}

func TestFailedWritesAreTriedAgain(t *testing.T) {
	inWorld(t, func(w world) {
		tries := 0
		w.Refuse(func(a kubetesting.Action) error {
			if a.GetResource().Resource == "endpointslices" {
				if tries++; tries%3 != 0 {
					return errors.New("not now")
				}
			}
			return nil
		})
		w.addService()
		w.addEndpoints("10.0.0.1 fd00::1:80", "10.0.0.2:90")
		w.expect("[10.0.0.1]:80 [10.0.0.2]:90 [fd00::1]:80")
		w.editEndpoints("10.0.0.4:82")
		w.expect("[10.0.0.4]:82")
	})
}

func TestAddressesThatAreNotMirroredAreReportedOnce(t *testing.T) {
	inWorld(t, func(w world) {
		w.addService()
		w.addEndpoints("10.0.0.1 nonsense:80")
		w.expect("[10.0.0.1]:80")
		w.Pass(time.Hour)
		list := testcluster.Must[*corev1.EventList](t)(w.Client.CoreV1().Events("ns").List(t.Context(), metav1.ListOptions{}))
		if len(list.Items) != 1 || list.Items[0].Reason != "InvalidIPAddress" || list.Items[0].Count != 1 {
			t.Errorf("events %+v", list.Items)
		}
	})
}
