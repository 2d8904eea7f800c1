package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// balanced is a Service of type LoadBalancer in front of web.
const balanced = `
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: echo, port: 8081, targetPort: echo, protocol: UDP}
`

// loadBalancerIP waits until the Service has an address.
func loadBalancerIP(t *testing.T, ns, name string) (address string) {
	t.Helper()
	eventually(t, 20*time.Second, "Service "+name+" has an address", func() error {
		svc, err := client.CoreV1().Services(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(svc.Status.LoadBalancer.Ingress) != 1 {
			return fmt.Errorf("status is %+v", svc.Status.LoadBalancer)
		}
		ingress := svc.Status.LoadBalancer.Ingress[0]
		if ingress.IPMode == nil || *ingress.IPMode != corev1.LoadBalancerIPModeVIP {
			t.Errorf("ipMode is %v, want VIP", ingress.IPMode)
		}
		address = ingress.IP
		return nil
	})
	return address
}

func TestALoadBalancerAnswersFromEverywhere(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 4)) // enough for pods on both nodes
	apply(t, ns, balanced)
	shell(t, ns)
	available(t, ns, "web")
	address := loadBalancerIP(t, ns, "balanced")
	url := "http://" + address + "/"

	eventually(t, 20*time.Second, "the host reaches it", func() error { _, err := get(freshClient(), url); return err })
	answered := map[string]bool{}
	for range 100 {
		body, err := get(freshClient(), url)
		if err != nil {
			t.Fatalf("from the host: %v", err)
		}
		answered[body] = true
	}
	if len(answered) != 4 {
		t.Errorf("the host was answered by %v, want four pods", answered)
	}
	if err := echo(hostPort(address, 8081)); err != nil {
		t.Errorf("UDP from the host: %v", err)
	}
	for _, node := range []string{"node-1", "node-2"} {
		out := command(20*time.Second, bin+"/weft", "node", "exec", "--name", name, node, "--", "curl", "-sS", "-m", "5", url).must(t)
		if !strings.HasPrefix(out, "Hello from web-") {
			t.Errorf("from %s: %q", node, out)
		}
	}
	if out, err := inShell(ns, "timeout 5 wget -qO- "+url); err != nil || !strings.HasPrefix(out, "Hello from web-") {
		t.Errorf("from a pod: %q, %v", out, err)
	}

	kubectl("-n", ns, "delete", "service", "balanced", "--timeout=20s").must(t)
	eventually(t, 10*time.Second, "the address answers no more", func() error {
		c := freshClient()
		c.Timeout = time.Second
		if body, err := get(c, url); err == nil {
			return errors.New(body)
		}
		return nil
	})
}

func TestALoadBalancerIsToldWhyItHasNoAddress(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, strings.Replace(balanced, "metadata: {name: balanced}",
		`metadata: {name: balanced, annotations: {weft.dev/load-balancer-ips: 198.51.100.1}}`, 1))
	eventually(t, 10*time.Second, "there is an event", func() error {
		out, err := kubectl("-n", ns, "get", "events", "--field-selector=involvedObject.name=balanced", "-o", "jsonpath={.items[*].message}").output()
		if err == nil && !strings.Contains(out, "198.51.100.1 is in no LoadBalancerPool") {
			err = fmt.Errorf("events say %q", out)
		}
		return err
	})
	kubectl("-n", ns, "annotate", "service", "balanced", "weft.dev/load-balancer-ips-").must(t)
	loadBalancerIP(t, ns, "balanced")
	kubectl("-n", ns, "patch", "service", "balanced", "-p", `{"spec":{"type":"ClusterIP"}}`).must(t)
	eventually(t, 10*time.Second, "another type gives the address back", func() error {
		svc, err := client.CoreV1().Services(ns).Get(t.Context(), "balanced", metav1.GetOptions{})
		if err == nil && len(svc.Status.LoadBalancer.Ingress)+len(svc.Finalizers) > 0 {
			err = fmt.Errorf("status %v, finalizers %v", svc.Status.LoadBalancer, svc.Finalizers)
		}
		return err
	})
}
