package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"weft.dev/weft/agent/cgroup2"
)

// killedName is the cluster that is killed whole; it is not the one that the
// other tests share.
const killedName = "e2e-kill"

// programs lists Weft's own processes of the killed cluster: supervisors,
// agents, the server, containerd and its shims, but no pod's.
func programs(t *testing.T) map[int]string {
	t.Helper()
	root, err := cgroup2.Root()
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]string{}
	nodes, err := filepath.Glob(filepath.Join(root, "weft", killedName, "*", "system", "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range nodes {
		text, _ := os.ReadFile(file) // gone with the last process
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				argv, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				found[pid] = strings.ReplaceAll(string(argv), "\x00", " ")
			}
		}
	}
	return found
}

// killPrograms kills them all, the supervisors first, and checks that it met
// every kind.
func killPrograms(t *testing.T) {
	t.Helper()
	kinds := map[string]int{"weft supervise": 0, "weft agent": 0, "weft-server": 0, "bin/containerd ": 0, "containerd-shim": 0}
	for round := 0; ; round++ {
		left := programs(t)
		if len(left) == 0 {
			break
		}
		if round == 100 {
			t.Fatalf("still running: %v", left)
		}
		for pid, argv := range left {
			for kind := range kinds {
				if strings.Contains(argv, kind) {
					kinds[kind]++
				}
			}
			isSupervisor := strings.Contains(argv, "weft supervise")
			if round > 0 || isSupervisor {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	for kind, n := range kinds {
		if n == 0 {
			t.Errorf("no process of kind %q was there to kill", kind)
		}
	}
}

func killedCluster(t *testing.T, argv ...string) {
	t.Helper()
	command(3*time.Minute, append([]string{bin + "/weft", argv[0], "--name", killedName}, argv[1:]...)...).must(t)
}

// objects lists what users have made, by UID: all of it must outlive the kill.
func objects(t *testing.T, client kubernetes.Interface) string {
	t.Helper()
	ctx, options := context.Background(), metav1.ListOptions{}
	deployments, err1 := client.AppsV1().Deployments("default").List(ctx, options)
	configMaps, err2 := client.CoreV1().ConfigMaps("default").List(ctx, options)
	services, err3 := client.CoreV1().Services("default").List(ctx, options)
	pods, err4 := client.CoreV1().Pods("default").List(ctx, options)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, o := range deployments.Items {
		fmt.Fprintln(&out, "deployment", o.Name, o.UID)
	}
	for _, o := range configMaps.Items {
		fmt.Fprintln(&out, "configmap", o.Name, o.UID, o.Data["key"])
	}
	for _, o := range services.Items {
		fmt.Fprintln(&out, "service", o.Name, o.UID, o.Spec.ClusterIP)
	}
	for _, o := range pods.Items {
		fmt.Fprintln(&out, "pod", o.Name, o.UID, o.Spec.NodeName)
	}
	return out.String()
}

// TestClusterWhoseProcessesAreKilledComesBackOrGoesAway kills every process
// of a cluster with pods. Up brings it back with the same objects, its pods
// running again on their nodes; killed again, Down leaves nothing.
func TestClusterWhoseProcessesAreKilledComesBackOrGoesAway(t *testing.T) {
	before := takeInventory(killedName)
	killedCluster(t, "down")
	t.Cleanup(func() { killedCluster(t, "down") })
	killedCluster(t, "up", "--nodes", "2")
	killedCluster(t, "image", "load", bin+"/images/demo.tar")

	config, err := clientcmd.BuildConfigFromFlags("", "/var/lib/weft/"+killedName+"/server/admin.kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	make := command(time.Minute, bin+"/weft", "kubectl", "apply", "-f", "-")
	make.env = []string{"KUBECONFIG=/var/lib/weft/" + killedName + "/server/admin.kubeconfig"}
	make.stdin = web("default", 4) + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\ndata: {key: value}\n"
	make.must(t)
	serves := func(when string) {
		t.Helper()
		eventually(t, 2*time.Minute, "4 pods are available and answer "+when, func() error {
			d, err := client.AppsV1().Deployments("default").Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if d.Status.AvailableReplicas != 4 {
				return fmt.Errorf("%d of 4 are available", d.Status.AvailableReplicas)
			}
			return answers(t, client)
		})
	}
	serves("at first")
	kept := objects(t, client)

	killPrograms(t)
	began := time.Now()
	killedCluster(t, "up")
	leases, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(leases.Items) != 2 {
		t.Fatalf("leases %v, %v", leases, err)
	}
	for _, lease := range leases.Items {
		if lease.Spec.RenewTime.Before(&metav1.MicroTime{Time: began}) {
			t.Errorf("up returned before the agent of %s was back", lease.Name)
		}
	}
	serves("after the kill")
	if now := objects(t, client); now != kept {
		t.Errorf("objects before the kill:\n%safter it:\n%s", kept, now)
	}

	killPrograms(t)
	killedCluster(t, "down")
	if err := before.leftovers(killedName); err != nil {
		t.Error(err)
	}
}

// answers asks the NodePort on every node.
func answers(t *testing.T, client kubernetes.Interface) error {
	s, err := client.CoreV1().Services("default").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, node := range nodes.Items {
		for _, address := range node.Status.Addresses {
			if address.Type != corev1.NodeInternalIP {
				continue
			}
			if _, err := get(freshClient(), fmt.Sprintf("http://%s:%d/", address.Address, s.Spec.Ports[0].NodePort)); err != nil {
				return err
			}
		}
	}
	return nil
}
