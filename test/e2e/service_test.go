package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestClusterIPReachesEveryReadyPodAndNoOther(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 5))
	// A pod that the selector matches and that never gets ready.
	apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: unready, labels: {app: web}}
spec:
  containers:
  - name: web
    image: registry.weft.local/demo:1
    env: [{name: POD_NAME, value: unready}]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {exec: {command: ["/nothing"]}}
`)
	shell(t, ns)
	available(t, ns, "web")
	var out string
	eventually(t, 20*time.Second, "all five pods answer", func() (err error) {
		out, err = inShell(ns, `for i in $(seq 500); do wget -qO- http://web/ || exit 1; done | sort | uniq -c`)
		if err == nil && strings.Count(out, "Hello from web-") != 5 {
			err = errors.New(out)
		}
		return err
	})
	if strings.Contains(out, "unready") {
		t.Errorf("a pod that is not ready got requests:\n%s", out)
	}
	t.Logf("500 requests:\n%s", out)
}

func TestUDPReachesPodsThroughClusterIPAndNodePort(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 3))
	available(t, ns, "web")
	answered := map[string]bool{}
	eventually(t, 20*time.Second, "every pod answers UDP through the ClusterIP", func() error {
		out, err := kubectl("-n", ns, "exec", "deploy/web", "--", "/app", "ask", "web:8081").output()
		if err != nil {
			return err
		}
		if answered[out] = true; len(answered) < 3 {
			return fmt.Errorf("only %v answered", answered)
		}
		return nil
	})
	port := nodePort(t, ns, "web", "echo")
	for _, node := range nodes {
		eventually(t, 10*time.Second, "UDP through the NodePort of "+node, func() error {
			conn, err := net.Dial("udp", hostPort(node, port))
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Second))
			if _, err := conn.Write([]byte("ping")); err != nil {
				return err
			}
			answer := make([]byte, 100)
			n, err := conn.Read(answer)
			if err == nil && !strings.HasSuffix(string(answer[:n]), "ping") {
				err = fmt.Errorf("answer is %q", answer[:n])
			}
			return err
		})
	}
}

func TestNodePortAnswersOnEveryNode(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 1))
	available(t, ns, "web")
	port := nodePort(t, ns, "web", "http")
	for _, node := range nodes {
		eventually(t, 10*time.Second, "NodePort of "+node, func() error {
			_, err := get(freshClient(), "http://"+hostPort(node, port)+"/")
			return err
		})
		out, err := exec.Command(bin+"/weft", "node", "exec", "--name", name, "node-2", "--",
			"curl", "-sS", "-m", "5", "http://"+hostPort(node, port)+"/").CombinedOutput()
		if err != nil {
			t.Errorf("NodePort of %s from a node: %v: %s", node, err, out)
		}
	}
}

func TestAServiceWithoutEndpointsRefusesAtOnce(t *testing.T) {
	ns := namespace(t)
	shell(t, ns)
	apply(t, ns, `
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {type: NodePort, selector: {app: nobody}, ports: [{port: 80}]}
`)
	eventually(t, 10*time.Second, "the ClusterIP refuses", func() error {
		began := time.Now()
		_, err := inShell(ns, "timeout 5 nc empty 80 </dev/null")
		if err == nil || time.Since(began) > 2*time.Second {
			return fmt.Errorf("%v after %s", err, time.Since(began))
		}
		return nil
	})
	service, err := client.CoreV1().Services(ns).Get(t.Context(), "empty", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	address := hostPort(nodes[0], service.Spec.Ports[0].NodePort)
	began := time.Now()
	_, err = net.DialTimeout("tcp", address, 5*time.Second)
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial of the NodePort: %v after %s, want refused", err, time.Since(began))
	}
}

func TestAPodReachesItselfThroughItsService(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: self}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: shell
    image: registry.weft.local/busybox:1
    command: [sh, -c, "echo self > /tmp/index.html; httpd -p 8080 -h /tmp; sleep infinity"]
---
apiVersion: v1
kind: Service
metadata: {name: self}
spec: {selector: {app: self}, ports: [{port: 80, targetPort: 8080}]}
`)
	podReady(t, ns, "shell")
	eventually(t, 20*time.Second, "the pod reaches itself", func() error {
		out, err := inShell(ns, "timeout 3 wget -qO- http://self/")
		if err == nil && !strings.Contains(out, "self") {
			err = errors.New(out)
		}
		return err
	})
}

func TestAKilledPodGetsNoMoreTrafficWithinASecond(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 3))
	available(t, ns, "web")
	url := "http://" + hostPort(nodes[0], nodePort(t, ns, "web", "http")) + "/"
	eventually(t, 10*time.Second, "the NodePort answers", func() error { _, err := get(freshClient(), url); return err })

	pods, err := client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	victim := pods.Items[0].Name
	kubectl("-n", ns, "delete", "pod", victim, "--grace-period=0", "--force", "--wait=false").must(t)
	time.Sleep(time.Second)
	for range 100 {
		body, err := get(freshClient(), url)
		if err != nil {
			t.Errorf("a request failed a second after the pod was killed: %v", err)
		}
		if strings.Contains(body, victim) {
			t.Fatalf("pod %s still answers a second after it was deleted", victim)
		}
	}
}

func TestTheNodesHaveNoIptablesRules(t *testing.T) {
	for _, node := range []string{"node-1", "node-2"} {
		out := command(20*time.Second, bin+"/weft", "node", "exec", "--name", name, node, "--",
			"sh", "-ec", "iptables-legacy-save; ip6tables-legacy-save; iptables-nft-save; ip6tables-nft-save; nft list ruleset").must(t)
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "-A") || strings.Contains(line, "chain") {
				t.Errorf("%s has a rule: %s", node, line)
			}
		}
	}
}

func TestIngressIssuesCertificatesRedirectsAndAnswers(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 2))
	available(t, ns, "web")
	c := ingressClient(t)
	host := ns + ".weft.local"
	eventually(t, 30*time.Second, "HTTPS answers", func() error {
		body, err := get(c, "https://"+host+"/")
		if err == nil && !strings.HasPrefix(body, "Hello from web-") {
			err = errors.New(body)
		}
		return err
	})
	response, err := c.Get("https://" + host + "/whoami")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.ProtoMajor != 2 {
		t.Errorf("protocol is %s, want HTTP/2", response.Proto)
	}
	response, err = c.Get("http://" + host + "/path?x=1")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if want := "https://" + host + "/path?x=1"; response.StatusCode != http.StatusPermanentRedirect || response.Header.Get("Location") != want {
		t.Errorf("HTTP answers %s to %q, want a redirect to %s", response.Status, response.Header.Get("Location"), want)
	}
	eventually(t, 20*time.Second, "the Ingress has the nodes' addresses", func() error {
		out, err := kubectl("-n", ns, "get", "ingress", "web", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}").output()
		if err == nil && len(strings.Fields(out)) != len(nodes) {
			err = fmt.Errorf("addresses are %q", out)
		}
		return err
	})
}
