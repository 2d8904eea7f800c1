package loadbalancer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/api"
	"weft.dev/weft/controlplane/controllers/testcluster"
)

// cluster has the controller at work over pools that are described as poolOf
// does.
type cluster struct {
	*testcluster.Cluster
	t     *testing.T
	pools *dynamicfake.FakeDynamicClient
}

func unstructuredPool(t *testing.T, pool *api.LoadBalancerPool) *unstructured.Unstructured {
	t.Helper()
	return &unstructured.Unstructured{Object: testcluster.Must[map[string]any](t)(runtime.DefaultUnstructuredConverter.ToUnstructured(pool))}
}

func start(t *testing.T, pools ...string) cluster {
	t.Helper()
	var objects []runtime.Object
	for _, description := range pools {
		objects = append(objects, unstructuredPool(t, poolOf(description)))
	}
	c := cluster{testcluster.New(t), t, dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{api.LoadBalancerPools: "LoadBalancerPoolList"}, objects...)}
	controller, err := New(c.Env("load-balancer-controller"), c.pools)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(controller)
	return c
}

// create makes Services, described as service does.
func (c cluster) create(descriptions ...string) {
	c.t.Helper()
	for _, d := range descriptions {
		testcluster.Must[*corev1.Service](c.t)(c.Client.CoreV1().Services("ns").Create(c.t.Context(), service(d), metav1.CreateOptions{}))
	}
	c.Pass(time.Second)
}

func (c cluster) get(name string) *corev1.Service {
	c.t.Helper()
	return testcluster.Must[*corev1.Service](c.t)(c.Client.CoreV1().Services("ns").Get(c.t.Context(), name, metav1.GetOptions{}))
}

// have lists the Services with what they have, by name.
func (c cluster) have() string {
	c.t.Helper()
	var words []string
	list := testcluster.Must[*corev1.ServiceList](c.t)(c.Client.CoreV1().Services("ns").List(c.t.Context(), metav1.ListOptions{}))
	for _, svc := range list.Items {
		word := svc.Name + "="
		for _, ingress := range svc.Status.LoadBalancer.Ingress {
			word += ingress.IP
			if ingress.IPMode == nil || *ingress.IPMode != corev1.LoadBalancerIPModeVIP {
				word += " without ipMode VIP"
			}
		}
		if slices.Contains(svc.Finalizers, Finalizer) {
			word += " held"
		}
		words = append(words, word)
	}
	slices.Sort(words)
	return strings.Join(words, "; ")
}

func (c cluster) want(have string) {
	c.t.Helper()
	if got := c.have(); got != have {
		c.t.Errorf("got  %s\nwant %s", got, have)
	}
}

func (c cluster) pool(name string) *api.LoadBalancerPool {
	c.t.Helper()
	object := testcluster.Must[*unstructured.Unstructured](c.t)(c.pools.Resource(api.LoadBalancerPools).Get(c.t.Context(), name, metav1.GetOptions{}))
	pool := &api.LoadBalancerPool{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, pool); err != nil {
		c.t.Fatal(err)
	}
	return pool
}

func (c cluster) events(name string) string {
	c.t.Helper()
	var words []string
	list := testcluster.Must[*corev1.EventList](c.t)(c.Client.CoreV1().Events("ns").List(c.t.Context(), metav1.ListOptions{}))
	for _, e := range list.Items {
		if e.InvolvedObject.Name == name {
			words = append(words, fmt.Sprintf("%s x%d", e.Reason, e.Count))
		}
	}
	return strings.Join(words, "; ")
}

func TestAServiceGetsAnAddressAndGivesItBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, "p 192.0.2.1-192.0.2.2")
		c.create("a", "b")
		c.want("a=192.0.2.1 held; b=192.0.2.2 held")
		if s := c.pool("p").Status; s.Allocated != 2 || s.Available != 0 || !meta.IsStatusConditionTrue(s.Conditions, conditionReady) {
			t.Errorf("status of the pool is %+v", s)
		}
		if err := c.Client.CoreV1().Services("ns").Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Pass(time.Second)
		c.want("b=192.0.2.2 held")
		c.create("c")
		c.want("b=192.0.2.2 held; c=192.0.2.1 held")
	})
}

func TestAnotherTypeReleasesTheAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, "p 192.0.2.1")
		c.create("a")
		svc := c.get("a")
		svc.Spec.Type = corev1.ServiceTypeClusterIP
		testcluster.Must[*corev1.Service](t)(c.Client.CoreV1().Services("ns").Update(t.Context(), svc, metav1.UpdateOptions{}))
		c.Pass(time.Second)
		c.want("a=")
		if got := c.get("a").Annotations; len(got) > 0 {
			t.Errorf("annotations are left: %v", got)
		}
		if s := c.pool("p").Status; s.Allocated != 0 || s.Available != 1 {
			t.Errorf("status of the pool is %+v", s)
		}
	})
}

func TestAnExhaustedPoolIsToldOnceAndServesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, "p 192.0.2.1")
		c.create("a age=9")
		c.create("b")
		c.create("d type=ClusterIP external=203.0.113.1") // one more pass
		c.want("a=192.0.2.1 held; b=; d=")
		if got, want := c.events("b"), reasonExhausted+" x1"; got != want {
			t.Errorf("events are %s, want %s", got, want)
		}
		more := poolOf("q 192.0.2.7")
		testcluster.Must[*unstructured.Unstructured](t)(c.pools.Resource(api.LoadBalancerPools).Create(t.Context(), unstructuredPool(t, more), metav1.CreateOptions{}))
		c.Pass(time.Second)
		c.want("a=192.0.2.1 held; b=192.0.2.7 held; d=")
	})
}

func TestAnAddressOutlivesItsPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, "p 192.0.2.1")
		c.create("a")
		if err := c.pools.Resource(api.LoadBalancerPools).Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Pass(time.Second)
		c.want("a=192.0.2.1 held")
	})
}

func TestAStatusThatSomebodyElseWroteIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		c.create("a has=203.0.113.5")
		c.want("a=203.0.113.5 without ipMode VIP")
	})
}

// Finalizer and status are written one after the other, and each may fail.
func TestLostWritesGiveNothingTwice(t *testing.T) {
	for seed := range 20 {
		synctest.Test(t, func(t *testing.T) {
			c := start(t, "p 192.0.2.1-192.0.2.6")
			writes := 0
			c.Refuse(func(action kubetesting.Action) error {
				if action.GetResource().Resource != "services" || action.GetVerb() == "create" {
					return nil
				}
				if writes++; (writes*7+seed)%3 == 0 {
					return errors.New("lost")
				}
				return nil
			})
			for i := range 6 {
				c.create(fmt.Sprintf("s%d", i))
			}
			c.Pass(5 * time.Minute)
			seen := map[string]bool{}
			for i := range 6 {
				svc := c.get(fmt.Sprintf("s%d", i))
				if len(svc.Status.LoadBalancer.Ingress) != 1 || seen[svc.Status.LoadBalancer.Ingress[0].IP] {
					t.Fatalf("seed %d: %s", seed, c.have())
				}
				seen[svc.Status.LoadBalancer.Ingress[0].IP] = true
			}
		})
	}
}

func TestAPoolWithAMistakeSaysSoAndGivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, "p 192.0.2.9-192.0.2.1")
		c.create("a")
		c.want("a=")
		condition := meta.FindStatusCondition(c.pool("p").Status.Conditions, conditionReady)
		if condition == nil || condition.Status != metav1.ConditionFalse || !strings.Contains(condition.Message, "ends before it begins") {
			t.Errorf("condition is %+v", condition)
		}
	})
}

func TestARestartedControllerKeepsWhatServicesHave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, "p 192.0.2.1-192.0.2.3")
		c.create("young held=p has=192.0.2.1", "old age=9")
		c.want("old=192.0.2.2 held; young=192.0.2.1 held")
	})
}
