package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestTwentyPodsSpreadOverTwoNodesAndBecomeAvailable(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 20))
	available(t, ns, "web")
	pods, err := client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	onNode, addresses := map[string]int{}, map[string]string{}
	for _, pod := range pods.Items {
		onNode[pod.Spec.NodeName]++
		if other := addresses[pod.Status.PodIP]; other != "" {
			t.Errorf("pods %s and %s share the address %s", pod.Name, other, pod.Status.PodIP)
		}
		addresses[pod.Status.PodIP] = pod.Name
	}
	if len(pods.Items) != 20 || len(onNode) != 2 {
		t.Errorf("%d pods, per node %v", len(pods.Items), onNode)
	}
}

// A rolling update under constant requests through ClusterIP, NodePort and
// Ingress loses none of them, and rollback works.
func TestRollingUpdateAndRollbackLoseNoRequest(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 4))
	available(t, ns, "web")
	service, err := client.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	port := nodePort(t, ns, "web", "http")
	tlsClient := ingressClient(t)
	url := "https://" + ns + ".weft.local/"
	eventually(t, 30*time.Second, "the ingress answers", func() error { _, err := get(tlsClient, url); return err })

	nodePortURL := "http://" + hostPort(nodes[1], port) + "/"
	stops := []func(*testing.T){
		load("NodePort from the host", func() error { _, err := get(freshClient(), nodePortURL); return err }),
		load("Ingress over TLS", func() error { _, err := get(tlsClient, url); return err }),
		load("ClusterIP from a node", func() error {
			out, err := exec.Command(bin+"/weft", "node", "exec", "--name", name, "node-1", "--",
				"curl", "-sSf", "-m", "5", "http://"+service.Spec.ClusterIP+"/").CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}),
	}
	kubectl("-n", ns, "set", "env", "deployment/web", "ROUND=2").must(t)
	available(t, ns, "web")
	kubectl("-n", ns, "rollout", "undo", "deployment/web").must(t)
	available(t, ns, "web")
	for _, stop := range stops {
		stop(t)
	}

	env := kubectl("-n", ns, "get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].env[*].name}").must(t)
	if strings.Contains(env, "ROUND") {
		t.Errorf("rollback kept the variable: %s", env)
	}
}

func TestAStuckRolloutReportsItsDeadlineAndKeepsTheOldPods(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 2))
	available(t, ns, "web")
	kubectl("-n", ns, "patch", "deployment", "web", "-p", `{"spec":{"progressDeadlineSeconds":3}}`).must(t)
	kubectl("-n", ns, "set", "image", "deployment/web", "web=registry.weft.local/demo:missing").must(t)
	err := kubectl("-n", ns, "rollout", "status", "deployment/web", "--timeout=60s").run()
	if err == nil || !strings.Contains(err.Error(), "exceeded its progress deadline") {
		t.Errorf("rollout status says %v, want the exceeded progress deadline", err)
	}
	deployment, err := client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if deployment.Status.AvailableReplicas < 2 {
		t.Errorf("%d replicas are available during the stuck rollout, want 2", deployment.Status.AvailableReplicas)
	}
}

func TestAWrongManifestIsRefusedByTheNameOfItsField(t *testing.T) {
	ns := namespace(t)
	tests := map[string]struct{ manifest, field string }{
		"a container without an image": {`
apiVersion: v1
kind: Pod
metadata: {name: wrong}
spec: {containers: [{name: c}]}`, "spec.containers[0].image"},
		"a selector that misses the template": {`
apiVersion: apps/v1
kind: Deployment
metadata: {name: wrong}
spec:
  selector: {matchLabels: {app: a}}
  template: {metadata: {labels: {app: b}}, spec: {containers: [{name: c, image: i}]}}`, "spec.template.metadata.labels"},
		"an unknown field": {`
apiVersion: v1
kind: Service
metadata: {name: wrong}
spec: {prots: [{port: 80}]}`, "spec.prots"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := kubectl("-n", ns, "apply", "-f", "-")
			c.stdin = test.manifest
			if err := c.run(); err == nil || !strings.Contains(err.Error(), test.field) {
				t.Errorf("error %v does not name %s", err, test.field)
			}
		})
	}
}

// exited is true when the error is a command's own failure.
func exited(err error) bool {
	var e *exec.ExitError
	return errors.As(err, &e)
}
