package statefulset

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

// TestStaleCachesCostNothing rolls a set out while watches are late. Each pod
// is deleted once and made once, and no more are down than allowed.
func TestStaleCachesCostNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		set  *appsv1.StatefulSet
	}{
		{"one by one", withClaims(web(5), "data")},
		{"in parallel", unavailable(parallel(withClaims(web(5), "data")), "2")},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(w world) {
				w.Lag(func() time.Duration { return 400 * time.Millisecond })
				w.create(c.set)
				w.Pass(5 * time.Minute)
				w.setImage("v2")
				w.Pass(10 * time.Minute)
				w.expect("pods", w.pods(), "web-0=v2 web-1=v2 web-2=v2 web-3=v2 web-4=v2")
				w.expect("status", w.status(), "5/5/5/5/5")
				attempts := map[string]int{}
				for _, a := range w.Client.Actions() {
					if d, ok := a.(kubetesting.DeleteActionImpl); ok && d.DeleteOptions.Preconditions != nil { // not the node's
						attempts["delete "+a.GetResource().Resource]++
					}
					if a.GetVerb() == "create" {
						attempts["create "+a.GetResource().Resource]++
					}
				}
				delete(attempts, "create events")
				w.expect("attempts", fmt.Sprint(attempts), "map[create controllerrevisions:2 create persistentvolumeclaims:5 create pods:10 create statefulsets:1 delete pods:5]")
			})
		})
	}
}

func TestClaimsAreMadeOnceThoughTheirPodIsRefused(t *testing.T) {
	inWorld(t, func(w world) {
		w.Lag(func() time.Duration { return 400 * time.Millisecond })
		claims, refused := 0, 0
		w.Refuse(func(a kubetesting.Action) error {
			if a.Matches("create", "persistentvolumeclaims") {
				claims++
			}
			if a.Matches("create", "pods") && refused < 3 {
				refused++
				return errors.New("exceeded quota")
			}
			return nil
		})
		w.create(withClaims(web(1), "data"))
		w.Pass(5 * time.Minute)
		w.expect("pods", w.pods(), "web-0=v1")
		if claims != 1 || refused != 3 {
			t.Errorf("%d attempts to make the claim, %d pods refused", claims, refused)
		}
	})
}

func TestStrangersPodHoldsUpOnlyWhatComesAfterIt(t *testing.T) {
	inWorld(t, func(w world) {
		stranger := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web-1"}, Spec: template("other").Spec}
		testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Create(t.Context(), stranger, metav1.CreateOptions{}))
		w.create(parallel(web(2)))
		w.Pass(10 * time.Second)
		w.expect("pods", w.pods(), "web-0=v1 web-1=other")
		w.SetPhase(w.pod("web-0"), corev1.PodFailed)
		w.Pass(10 * time.Minute)
		w.expect("status", w.status(), "1/1/1/1/1")
		w.deletePod("web-1")
		w.Pass(7 * time.Second)
		w.expect("the name is used as soon as it is free", w.pods(), "web-0=v1 web-1=v1")
	})
}

func TestRandomFailuresAreOvercome(t *testing.T) {
	inWorld(t, func(w world) {
		writes := 0
		isUsers := func(a kubetesting.Action) bool { return a.Matches("create", "statefulsets") }
		w.Refuse(func(a kubetesting.Action) error {
			if writes++; writes%3 == 0 && !isUsers(a) {
				return errors.New("no")
			}
			return nil
		})
		w.Lose(func(a kubetesting.Action) bool { return writes%5 == 0 && !isUsers(a) })
		w.create(withClaims(parallel(web(10)), "data", "logs"))
		w.Pass(10 * time.Minute)
		w.Refuse(nil)
		w.Lose(nil)
		w.setImage("v2")
		w.Pass(10 * time.Minute)
		if w.status() != "10/10/10/10/10" || strings.Count(w.pods(), "v2") != 10 || strings.Count(w.claims(), "web") != 20 {
			t.Errorf("status %s, pods %s, claims %s", w.status(), w.pods(), w.claims())
		}
	})
}
