package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"weft.dev/weft/cmd/weft/supervise"
)

// client speaks to the cluster's API server as its administrator.
func (c *Cluster) client() (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, err
	}
	config.Timeout = 5 * time.Second
	return kubernetes.NewForConfig(config)
}

// awaitServer waits until the API server is ready.
func (c *Cluster) awaitServer(ctx context.Context, _ string, say func(string)) error {
	err := poll(ctx, func() error {
		client, err := c.client()
		if errors.Is(err, fs.ErrNotExist) {
			return errors.New("the server has not written its kubeconfig yet")
		}
		if err != nil {
			return err
		}
		_, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
	if err == nil {
		say("https://" + c.addrPort().String())
	}
	return err
}

// awaitNodes waits until every node has joined and is ready.
func (c *Cluster) awaitNodes(ctx context.Context, _ string, say func(string)) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return poll(ctx, func() error {
		ready, waiting, err := c.readyNodes(ctx, client)
		if err != nil {
			return err
		}
		say(fmt.Sprintf("%d of %d ready", ready, c.Nodes))
		if ready < c.Nodes {
			return errors.New("not ready: " + strings.Join(waiting, "; "))
		}
		return nil
	})
}

// readyNodes counts the ready nodes and says what the others wait for.
func (c *Cluster) readyNodes(ctx context.Context, client kubernetes.Interface) (ready int, waiting []string, err error) {
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, nil, err
	}
	leases, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, nil, err
	}
	renewed := map[string]time.Time{}
	for _, lease := range leases.Items {
		if lease.Spec.RenewTime != nil {
			renewed[lease.Name] = lease.Spec.RenewTime.Time
		}
	}
	why := map[string]string{}
	for _, node := range list.Items {
		why[node.Name] = notReady(&node)
	}
	for _, node := range c.AllNodes() {
		if reason, joined := why[node.Name]; joined && reason == "" && !isAlive(node, renewed[node.Name]) {
			why[node.Name] = "its agent has not reported yet"
		}
	}
	for _, node := range c.AllNodes() {
		switch reason, joined := why[node.Name]; {
		case !joined:
			waiting = append(waiting, node.Name+" has not joined")
		case reason != "":
			waiting = append(waiting, node.Name+": "+reason)
		default:
			ready++
		}
	}
	return ready, waiting, nil
}

// isAlive reports whether the agent that runs now has renewed the node's lease:
// conditions may be those of an agent that was killed.
func isAlive(n Node, renewed time.Time) bool {
	if supervise.PID(n.runDir(), "agent") == 0 {
		return false
	}
	started, err := os.Stat(filepath.Join(n.runDir(), "agent.pid"))
	return err == nil && renewed.After(started.ModTime())
}

// notReady says why a node is not ready, or nothing when it is.
func notReady(node *corev1.Node) string {
	for _, condition := range node.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		if condition.Status == corev1.ConditionTrue {
			return ""
		}
		return condition.Message
	}
	return "no Ready condition yet"
}

// poll calls try until it succeeds or ctx is done, then returns its last error.
func poll(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
