package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestInitContainersRunInOrderAndAreRetried(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: inits}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: first
    image: registry.weft.local/busybox:1
    command: [sh, -c, 'echo x >> /data/tries; [ $(wc -l < /data/tries) -ge 3 ]']
    volumeMounts: [{name: work, mountPath: /data}]
  - name: second
    image: registry.weft.local/busybox:1
    command: [sh, -c, 'cp /data/tries /data/seen']
    volumeMounts: [{name: work, mountPath: /data}]
  containers:
  - name: app
    image: registry.weft.local/busybox:1
    command: [sh, -c, 'wc -l < /data/seen; sleep infinity']
    volumeMounts: [{name: work, mountPath: /data}]
  volumes: [{name: work, emptyDir: {}}]
`)
	var pod *corev1.Pod
	eventually(t, 90*time.Second, "the pod runs after its init container failed twice", func() (err error) {
		pod, err = client.CoreV1().Pods(ns).Get(t.Context(), "inits", metav1.GetOptions{})
		if err == nil && !isReady(pod) {
			err = fmt.Errorf("%+v", pod.Status.InitContainerStatuses)
		}
		return err
	})
	if n := pod.Status.InitContainerStatuses[0].RestartCount; n != 2 {
		t.Errorf("the first init container was restarted %d times, want 2", n)
	}
	if out := kubectl("-n", ns, "logs", "inits").must(t); strings.TrimSpace(out) != "3" {
		t.Errorf("the app saw %q tries, want 3", out)
	}
}

func TestACrashingContainerBacksOff(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers: [{name: c, image: "registry.weft.local/busybox:1", command: [sh, -c, "echo tried; exit 7"]}]
`)
	var last corev1.ContainerStatus
	eventually(t, 40*time.Second, "CrashLoopBackOff", func() error {
		pod, err := client.CoreV1().Pods(ns).Get(t.Context(), "crash", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(pod.Status.ContainerStatuses) == 1 {
			last = pod.Status.ContainerStatuses[0]
		}
		if last.State.Waiting == nil || last.State.Waiting.Reason != "CrashLoopBackOff" || last.RestartCount < 1 {
			return fmt.Errorf("%+v", last)
		}
		return nil
	})
	if last.LastTerminationState.Terminated == nil || last.LastTerminationState.Terminated.ExitCode != 7 {
		t.Errorf("last state is %+v, want exit code 7", last.LastTerminationState)
	}
	if out := kubectl("-n", ns, "logs", "crash", "--previous").must(t); !strings.Contains(out, "tried") {
		t.Errorf("the previous container logged %q", out)
	}
	eventually(t, 10*time.Second, "an event tells of the back-off", func() error {
		out, err := kubectl("-n", ns, "get", "events", "-o", "jsonpath={.items[*].reason}").output()
		if err == nil && !strings.Contains(out, "BackOff") {
			err = errors.New(out)
		}
		return err
	})
}

func TestLivenessRestartsAndReadinessRemovesFromTheService(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: probed}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: shell
    image: registry.weft.local/busybox:1
    command: [sh, -c, "touch /tmp/ready /tmp/alive; sleep infinity"]
    readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {exec: {command: [cat, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 2}
---
apiVersion: v1
kind: Service
metadata: {name: probed}
spec: {selector: {app: probed}, ports: [{port: 80}]}
`)
	podReady(t, ns, "shell")
	endpoints := func(want string) func() error {
		return func() error {
			out, err := kubectl("-n", ns, "get", "endpointslices", "-l", "kubernetes.io/service-name=probed",
				"-o", "jsonpath={.items[*].endpoints[*].conditions.ready}").output()
			if err == nil && out != want {
				err = fmt.Errorf("ready is %q, want %q", out, want)
			}
			return err
		}
	}
	eventually(t, 10*time.Second, "the endpoint is ready", endpoints("true"))
	if _, err := inShell(ns, "rm /tmp/ready"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the endpoint is not ready", endpoints("false"))
	if _, err := inShell(ns, "rm /tmp/alive"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the container is restarted and ready again", func() error {
		pod, err := client.CoreV1().Pods(ns).Get(t.Context(), "shell", metav1.GetOptions{})
		if err == nil && (pod.Status.ContainerStatuses[0].RestartCount != 1 || !isReady(pod)) {
			err = fmt.Errorf("%+v", pod.Status.ContainerStatuses[0])
		}
		return err
	})
}

func TestAConfigMapUpdateReachesTheFile(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: red}
---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: shell
    image: registry.weft.local/busybox:1
    command: [sleep, infinity]
    env: [{name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}]
    volumeMounts: [{name: settings, mountPath: /settings}]
  volumes: [{name: settings, configMap: {name: settings}}]
`)
	podReady(t, ns, "shell")
	if out, err := inShell(ns, "echo $COLOR; cat /settings/color"); err != nil || out != "red\nred" {
		t.Errorf("before the update: %q, %v", out, err)
	}
	kubectl("-n", ns, "patch", "configmap", "settings", "-p", `{"data":{"color":"blue"}}`).must(t)
	eventually(t, 10*time.Second, "the file holds the update", func() error {
		out, err := inShell(ns, "cat /settings/color")
		if err == nil && out != "blue" {
			err = errors.New(out)
		}
		return err
	})
}

func TestKubectlRoundTrips(t *testing.T) {
	ns := namespace(t)
	shell(t, ns)

	t.Run("exec passes standard input, output and the exit code", func(t *testing.T) {
		c := kubectl("-n", ns, "exec", "-i", "shell", "--", "sh", "-c", "cat; exit 3")
		c.stdin = "over and back"
		out, err := c.output()
		if out != "over and back" || !exited(err) || !strings.Contains(err.Error(), "exit status 3") {
			t.Errorf("got %q, %v", out, err)
		}
	})
	t.Run("cp there and back keeps the bytes", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, []byte(strings.Repeat("0123456789\n", 100_000)), 0o644); err != nil {
			t.Fatal(err)
		}
		kubectl("-n", ns, "cp", file, "shell:/tmp/file").must(t)
		kubectl("-n", ns, "cp", "shell:/tmp/file", file+".back").must(t)
		if err := command(time.Minute, "cmp", file, file+".back").run(); err != nil {
			t.Error(err)
		}
	})
	t.Run("logs -f follows until the container ends", func(t *testing.T) {
		apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "registry.weft.local/busybox:1", command: [sh, -c, "for i in 1 2 3; do echo line $i; sleep 1; done"]}]
`)
		eventually(t, 20*time.Second, "the container runs", func() error { return kubectl("-n", ns, "logs", "talker").run() })
		if out := kubectl("-n", ns, "logs", "-f", "talker").must(t); out != "line 1\nline 2\nline 3\n" {
			t.Errorf("logs are %q", out)
		}
	})
	t.Run("port-forward reaches a port of the pod", func(t *testing.T) {
		if _, err := inShell(ns, "echo hello > /tmp/index.html; httpd -p 8080 -h /tmp"); err != nil {
			t.Fatal(err)
		}
		forward := exec.Command(bin+"/weft", "kubectl", "-n", ns, "port-forward", "pod/shell", ":8080")
		forward.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig())
		forward.Stderr = os.Stderr
		out, err := forward.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := forward.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { forward.Process.Kill(); forward.Wait() }()
		buffer := make([]byte, 200)
		n, err := out.Read(buffer)
		match := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindStringSubmatch(string(buffer[:n]))
		if err != nil || match == nil {
			t.Fatalf("port-forward says %q, %v", buffer[:n], err)
		}
		body, err := get(freshClient(), "http://"+net.JoinHostPort("127.0.0.1", match[1])+"/index.html")
		if err != nil || body != "hello" {
			t.Errorf("got %q, %v", body, err)
		}
	})
}

func TestPodsResolveNamesOfTheCluster(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, web(ns, 1))
	apply(t, ns, `
apiVersion: v1
kind: Service
metadata: {name: heads}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
`)
	shell(t, ns)
	available(t, ns, "web")
	for _, name := range []string{
		"kubernetes.default",
		"kubernetes.default.svc.cluster.local",
		"web",
		"web." + ns,
		"web." + ns + ".svc.cluster.local",
		"heads",
	} {
		eventually(t, 10*time.Second, name+" resolves", func() error {
			_, err := inShell(ns, "ping -c 1 -w 1 "+name+" 2>&1 | grep -q '^PING .*(1[0-9.]*)'")
			return err
		})
	}
	if out, err := inShell(ns, "nslookup nothing.default.svc.cluster.local"); err == nil || !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("a name that is not there gives %q, %v; want NXDOMAIN", out, err)
	}
}

func TestMemoryLimitKillsTheContainerThatExceedsIt(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: registry.weft.local/busybox:1
    command: [sh, -c, "x=0123456789; while true; do x=$x$x; done"]
    resources: {limits: {memory: 32Mi}}
`)
	eventually(t, 40*time.Second, "OOMKilled", func() error {
		pod, err := client.CoreV1().Pods(ns).Get(t.Context(), "greedy", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s := pod.Status.ContainerStatuses; len(s) != 1 || s[0].State.Terminated == nil || s[0].State.Terminated.Reason != "OOMKilled" {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}
