package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// killProgram kills a program of a node as a crash would, and waits until the
// supervisor has started it again.
func killProgram(t *testing.T, node, program string) {
	t.Helper()
	before := programPID(t, node, program)
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %s of %s: %v", program, node, err)
	}
	eventually(t, 20*time.Second, program+" of "+node+" is started again", func() error {
		if pid, err := findPID(node, program); err != nil || pid == before {
			return fmt.Errorf("pid %d, %v", pid, err)
		}
		return nil
	})
}

func programPID(t *testing.T, node, program string) int {
	t.Helper()
	pid, err := findPID(node, program)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func findPID(node, program string) (int, error) {
	text, err := os.ReadFile("/run/weft/" + name + "/" + node + "/" + program + ".pid")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), `"pid":`)
	digits, _, _ := strings.Cut(rest, ",")
	return strconv.Atoi(digits)
}

// podStates lists what a crash of an agent must not change.
func podStates(t *testing.T, ns string) string {
	t.Helper()
	pods, err := client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, pod := range pods.Items {
		fmt.Fprintf(&out, "%s %s", pod.Name, pod.Status.PodIP)
		for _, condition := range pod.Status.Conditions {
			fmt.Fprintf(&out, " %s=%s since %s", condition.Type, condition.Status, condition.LastTransitionTime.UTC())
		}
		for _, container := range pod.Status.ContainerStatuses {
			fmt.Fprintf(&out, " %s restarts %d", container.ContainerID, container.RestartCount)
		}
		out.WriteString("\n")
	}
	return out.String()
}

func TestAgentKilledDuringTrafficLosesNothing(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 4))
	available(t, ns, "web")
	tcp := "http://" + hostPort(nodes[1], nodePort(t, ns, "web", "http")) + "/"
	udp := hostPort(nodes[1], nodePort(t, ns, "web", "echo"))
	eventually(t, 10*time.Second, "the NodePort answers", func() error { _, err := get(freshClient(), tcp); return err })
	before := podStates(t, ns)

	stopTCP := load("TCP", func() error { _, err := get(freshClient(), tcp); return err })
	stopUDP := load("UDP", func() error { return echo(udp) })
	killProgram(t, "node-2", "agent")
	killProgram(t, "node-1", "agent")
	time.Sleep(3 * time.Second)
	stopTCP(t)
	stopUDP(t)
	if after := podStates(t, ns); after != before {
		t.Errorf("pods changed:\n%s\nto\n%s", before, after)
	}
}

func echo(address string) error {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 100))
	return err
}

func TestServerKilledKeepsPodsServingAndObjects(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 2))
	available(t, ns, "web")
	url := "http://" + hostPort(nodes[0], nodePort(t, ns, "web", "http")) + "/"
	eventually(t, 10*time.Second, "the NodePort answers", func() error { _, err := get(freshClient(), url); return err })
	before := podStates(t, ns)

	stop := load("TCP", func() error { _, err := get(freshClient(), url); return err })
	killProgram(t, "node-1", "server")
	eventually(t, 60*time.Second, "the API server is back", func() error {
		return kubectl("get", "--raw", "/readyz").run()
	})
	stop(t)
	if after := podStates(t, ns); after != before {
		t.Errorf("pods changed:\n%s\nto\n%s", before, after)
	}
	kubectl("-n", ns, "scale", "deployment/web", "--replicas=3").must(t)
	eventually(t, 60*time.Second, "controllers work again", func() error {
		deployment, err := client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
		if err == nil && deployment.Status.AvailableReplicas != 3 {
			err = errors.New("not scaled yet")
		}
		return err
	})
}
