package ingressaccess

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/controlplane/api"
	"weft.dev/weft/controlplane/controllers/testcluster"
)

func ingress(name string, class *string, secrets ...string) *networkingv1.Ingress {
	i := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	i.Spec.IngressClassName = class
	for _, secret := range secrets {
		i.Spec.TLS = append(i.Spec.TLS, networkingv1.IngressTLS{SecretName: secret})
	}
	return i
}

func class(name, controller string, isDefault bool) *networkingv1.IngressClass {
	c := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.IngressClassSpec{Controller: controller}}
	if isDefault {
		c.Annotations = map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}
	}
	return c
}

func TestDecide(t *testing.T) {
	annotated := ingress("a", nil, "s")
	annotated.Annotations = map[string]string{annotationClass: "weft"}
	weft := class("weft", api.IngressController, false)
	weftDefault := class("weft", api.IngressController, true)
	other := class("other", "example.com/other", true)
	cases := []struct {
		name    string
		ingress *networkingv1.Ingress
		class   *networkingv1.IngressClass
		want    string
	}{
		{"a Secret of our class is granted", ingress("a", new("weft"), "s"), weft, "s"},
		{"Secrets are granted once each, in order", ingress("a", new("weft"), "t", "s", "t"), weft, "s t"},
		{"a host without a Secret grants nothing", ingress("a", new("weft"), ""), weft, ""},
		{"another class grants nothing", ingress("a", new("other"), "s"), other, ""},
		{"a class that does not exist grants nothing", ingress("a", new("weft"), "s"), other, ""},
		{"no class is our class if ours is the default", ingress("a", nil, "s"), weftDefault, "s"},
		{"no class grants nothing if ours is not the default", ingress("a", nil, "s"), weft, ""},
		{"no class grants nothing if another is the default", ingress("a", nil, "s"), other, ""},
		{"the old annotation counts", annotated, weft, "s"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(decide([]*networkingv1.Ingress{c.ingress}, []*networkingv1.IngressClass{c.class}), " ")
			if got != c.want {
				t.Errorf("granted %q, want %q", got, c.want)
			}
		})
	}
}

func TestRoleFollowsIngresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := testcluster.New(t)
		c, err := New(cluster.Env("ingress-access-controller"))
		if err != nil {
			t.Fatal(err)
		}
		cluster.Run(c)
		granted := func() string {
			cluster.Pass(2 * time.Second)
			roles := testcluster.Must[*rbacv1.RoleList](t)(cluster.Client.RbacV1().Roles("ns").List(t.Context(), metav1.ListOptions{}))
			bindings := testcluster.Must[*rbacv1.RoleBindingList](t)(cluster.Client.RbacV1().RoleBindings("ns").List(t.Context(), metav1.ListOptions{}))
			if len(roles.Items) != len(bindings.Items) {
				t.Errorf("%d roles, %d bindings", len(roles.Items), len(bindings.Items))
			}
			if len(roles.Items) == 0 {
				return "nothing"
			}
			return strings.Join(roles.Items[0].Rules[0].ResourceNames, " ")
		}
		expect := func(when, want string) {
			t.Helper()
			if got := granted(); got != want {
				t.Errorf("%s: granted %s, want %s", when, got, want)
			}
		}
		ingresses := cluster.Client.NetworkingV1().Ingresses("ns")
		one := testcluster.Must[*networkingv1.Ingress](t)(ingresses.Create(t.Context(), ingress("one", new("weft"), "s"), metav1.CreateOptions{}))
		expect("before the class exists", "nothing")
		testcluster.Must[*networkingv1.IngressClass](t)(cluster.Client.NetworkingV1().IngressClasses().Create(t.Context(), class("weft", api.IngressController, false), metav1.CreateOptions{}))
		expect("when the class exists", "s")
		testcluster.Must[*networkingv1.Ingress](t)(ingresses.Create(t.Context(), ingress("two", new("weft"), "t"), metav1.CreateOptions{}))
		expect("with two Ingresses", "s t")
		one.Spec.TLS = nil
		testcluster.Must[*networkingv1.Ingress](t)(ingresses.Update(t.Context(), one, metav1.UpdateOptions{}))
		expect("when one needs no Secret any more", "t")
		if err := cluster.Client.RbacV1().Roles("ns").Delete(t.Context(), Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		expect("when somebody deleted the Role", "t")
		if err := ingresses.Delete(t.Context(), "two", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		expect("when the last one is gone", "nothing")
	})
}
