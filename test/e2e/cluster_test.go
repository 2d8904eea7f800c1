// Package e2e uses a real two-node cluster as a user would: manifests applied
// with kubectl, traffic from pods and from the host, processes killed.
//
// The cluster is made by `weft up` from the programs in WEFT_BIN (default
// bin/ of the repository) and removed at the end, which is a test too.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// name is the cluster the tests make for themselves.
const name = "e2e"

var (
	bin    string
	client kubernetes.Interface
	// nodes are the addresses of the nodes.
	nodes []string
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("skipped: a local cluster needs root")
		os.Exit(0)
	}
	code, err := withCluster(m.Run)
	if err != nil {
		log.Print(err)
		code = 1
	}
	os.Exit(code)
}

// withCluster makes the cluster, runs the tests, and removes the cluster.
func withCluster(run func() int) (code int, err error) {
	if bin = os.Getenv("WEFT_BIN"); bin == "" {
		if bin, err = filepath.Abs("../../bin"); err != nil {
			return 1, err
		}
	}
	before := takeInventory(name)
	down := func() error { return command(2*time.Minute, bin+"/weft", "down", "--name", name).run() }
	if err := down(); err != nil {
		return 1, err
	}
	if err := setUp(); err != nil {
		return 1, errors.Join(err, dumpLogs(), down())
	}
	code = run()
	if code != 0 {
		dumpLogs()
	}
	if os.Getenv("WEFT_KEEP") != "" {
		log.Print("WEFT_KEEP is set: the cluster stays; remove it with: weft down --name " + name)
		return code, nil
	}
	return code, errors.Join(down(), before.leftovers(name))
}

func setUp() error {
	began := time.Now()
	if err := command(3*time.Minute, bin+"/weft", "up", "--name", name, "--nodes", "2").run(); err != nil {
		return err
	}
	log.Printf("cluster is up after %.1f s", time.Since(began).Seconds())
	if err := command(time.Minute, bin+"/weft", "image", "load", "--name", name,
		bin+"/images/busybox.tar", bin+"/images/demo.tar").run(); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig())
	if err != nil {
		return err
	}
	config.QPS = -1
	if client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	list, err := client.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, node := range list.Items {
		for _, address := range node.Status.Addresses {
			if address.Type == corev1.NodeInternalIP {
				nodes = append(nodes, address.Address)
			}
		}
	}
	if len(nodes) != 2 {
		return fmt.Errorf("nodes have the addresses %v, want two", nodes)
	}
	return nil
}

func kubeconfig() string { return "/var/lib/weft/" + name + "/server/admin.kubeconfig" }

// dumpLogs prints the end of every program's log.
func dumpLogs() error {
	files, err := filepath.Glob("/var/lib/weft/" + name + "/nodes/*/log/*.log")
	for _, file := range files {
		out, _ := exec.Command("tail", "-n", "40", file).CombinedOutput()
		fmt.Printf("==== %s\n%s\n", file, out)
	}
	return err
}

// cmd is a command with a time limit.
type cmd struct {
	limit time.Duration
	argv  []string
	stdin string
	env   []string
}

func command(limit time.Duration, argv ...string) cmd { return cmd{limit: limit, argv: argv} }

// kubectl is the kubectl built into weft-server.
func kubectl(args ...string) cmd {
	c := command(2*time.Minute, append([]string{bin + "/weft", "kubectl"}, args...)...)
	c.env = []string{"KUBECONFIG=" + kubeconfig()}
	return c
}

// output runs the command and returns its standard output.
func (c cmd) output() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.limit)
	defer cancel()
	command := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	command.Env = append(os.Environ(), c.env...)
	command.Stdin = strings.NewReader(c.stdin)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(c.argv, " "), err, stderr.String(), stdout.String())
	}
	return stdout.String(), nil
}

func (c cmd) run() error { _, err := c.output(); return err }

func (c cmd) must(t *testing.T) string {
	t.Helper()
	out, err := c.output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var namespaces atomic.Int32

// namespace makes a namespace for one test, removed with all in it.
func namespace(t *testing.T) string {
	t.Helper()
	ns := fmt.Sprintf("e2e-%d", namespaces.Add(1))
	kubectl("create", "namespace", ns).must(t)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := kubectl("-n", ns, "get", "pods,endpointslices,events", "-o", "wide").output()
			t.Logf("namespace %s at the failure:\n%s", ns, out)
		}
		if os.Getenv("WEFT_KEEP") == "" {
			kubectl("delete", "namespace", ns, "--wait=false").run()
		}
	})
	return ns
}

// apply applies a manifest with kubectl.
func apply(t *testing.T, ns, manifest string) {
	t.Helper()
	c := kubectl("-n", ns, "apply", "-f", "-")
	c.stdin = manifest
	c.must(t)
}

// eventually retries until try succeeds, and fails the test with the last
// error after the limit.
func eventually(t *testing.T, limit time.Duration, what string, try func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Since(began) > limit {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// podReady waits until the pod is Ready and returns it.
func podReady(t *testing.T, ns, pod string) *corev1.Pod {
	t.Helper()
	var found *corev1.Pod
	eventually(t, time.Minute, "pod "+pod+" is ready", func() (err error) {
		found, err = client.CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !isReady(found) {
			return fmt.Errorf("phase %s, containers %+v", found.Status.Phase, found.Status.ContainerStatuses)
		}
		return nil
	})
	return found
}

func isReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// available waits until the Deployment has all its replicas available.
func available(t *testing.T, ns, deployment string) {
	t.Helper()
	kubectl("-n", ns, "rollout", "status", "deployment/"+deployment, "--timeout=90s").must(t)
}

// shell makes a busybox pod to run commands in and waits for it.
func shell(t *testing.T, ns string) {
	t.Helper()
	apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: shell
    image: registry.weft.local/busybox:1
    command: [sleep, infinity]
`)
	podReady(t, ns, "shell")
}

// inShell runs a shell script in the pod that shell made.
func inShell(ns, script string) (string, error) {
	return kubectl("-n", ns, "exec", "shell", "--", "sh", "-c", script).output()
}
