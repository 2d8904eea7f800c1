package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"weft.dev/weft/controlplane/pki"
)

// inNamespace says to a test that it runs in a network namespace of its own.
const inNamespace = "WEFT_TEST_IN_NETWORK_NAMESPACE"

// isolated runs the rest of a test in a process with a network namespace of
// its own, so that ports and addresses are free and traffic stays inside. It
// reports whether this is that process.
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	if testing.Short() {
		t.Skip("starts a whole control plane, which takes about 20 s")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

// address brings up the loopback interface and returns the address of one
// more, as the control plane wants one that is not a loopback address.
func address(t *testing.T) netip.Addr {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0-peer"}
	addr, err := netlink.ParseAddr("192.0.2.1/24")
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(veth))
	if err == nil {
		err = errors.Join(netlink.AddrAdd(veth, addr), netlink.LinkSetUp(veth))
	}
	if err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddr("192.0.2.1")
}

// cluster is a control plane under test.
type cluster struct {
	*testing.T
	cfg    Config
	stop   context.CancelFunc
	result chan error
	admin  kubernetes.Interface
}

func startCluster(t *testing.T, cfg Config) *cluster {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	c := &cluster{T: t, cfg: cfg, stop: stop, result: make(chan error, 1)}
	go func() { c.result <- Run(ctx, cfg) }()
	t.Cleanup(stop)
	c.eventually("the control plane is ready", func(ctx context.Context) error {
		select {
		case err := <-c.result:
			t.Fatalf("Run returned %v", err)
		default:
		}
		client, err := kubernetes.NewForConfig(c.adminConfig())
		if err != nil {
			return err
		}
		c.admin = client
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	return c
}

func (c *cluster) adminConfig() *rest.Config {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.cfg.AdminKubeconfig())
	if err != nil {
		return &rest.Config{Host: "https://192.0.2.1:6443"}
	}
	return cfg
}

func (c *cluster) stopAndWait() {
	c.Helper()
	begin := time.Now()
	c.stop()
	select {
	case err := <-c.result:
		if err != nil {
			c.Errorf("Run returned %v after it was asked to stop", err)
		}
	case <-time.After(30 * time.Second):
		c.Fatal("the control plane does not stop")
	}
	c.Logf("stopped in %s", time.Since(begin).Round(time.Millisecond))
}

// eventually fails the test if f keeps failing for a minute.
func (c *cluster) eventually(what string, f func(context.Context) error) {
	c.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := retry(ctx, time.Minute, func() error { return f(ctx) }); err != nil {
		c.Fatalf("not within a minute: %s: %v", what, err)
	}
}

// TestControlPlane runs a whole control plane, twice over the same state.
func TestControlPlane(t *testing.T) {
	if !isolated(t) {
		return
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	cfg := DefaultConfig()
	cfg.StateDir = filepath.Join(t.TempDir(), "state")
	cfg.AdvertiseAddress = address(t)
	c := startCluster(t, cfg)
	c.anonymousReachesHealthOnly()
	c.namespacesLiveAndDie()
	c.secretsAreEncrypted()
	node := c.nodeJoinsByToken()
	pod := c.podIsScheduledTo(node)
	join, err := os.ReadFile(cfg.JoinFile())
	if err != nil {
		t.Fatal(err)
	}
	c.stopAndWait()
	stopsWhileStarting(t, cfg)

	c = startCluster(t, cfg)
	c.objectsAreStillThere(node, pod)
	if again, err := os.ReadFile(cfg.JoinFile()); err != nil || !bytes.Equal(join, again) {
		t.Errorf("the join file changed over a restart, or is gone: %v", err)
	}
	c.stopAndWait()
}

func stopsWhileStarting(t *testing.T, cfg Config) {
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if err := Run(ctx, cfg); err != nil {
		t.Errorf("Run returned %v after it was asked to stop while starting", err)
	}
}

func (c *cluster) anonymousReachesHealthOnly() {
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(c.cfg.pkiDir(), pki.ClusterCA))
	if err != nil {
		c.Fatal(err)
	}
	pool.AppendCertsFromPEM(ca)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	for path, want := range map[string]int{
		"/readyz":           http.StatusOK,
		"/livez":            http.StatusOK,
		"/version":          http.StatusUnauthorized,
		"/api/v1/nodes":     http.StatusUnauthorized,
		"/apis":             http.StatusUnauthorized,
		"/metrics":          http.StatusUnauthorized,
		"/readyz/../api/v1": http.StatusUnauthorized,
	} {
		resp, err := client.Get(c.cfg.Server() + path)
		if err != nil {
			c.Error(err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			c.Errorf("anonymous GET %s: %s, want %d", path, resp.Status, want)
		}
	}
}

func (c *cluster) namespacesLiveAndDie() {
	ctx := context.Background()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "short-lived"}}
	if _, err := c.admin.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	c.eventually("a new namespace has its ServiceAccount and root CA", func(ctx context.Context) error {
		_, err := c.admin.CoreV1().ServiceAccounts(ns.Name).Get(ctx, "default", metav1.GetOptions{})
		_, err2 := c.admin.CoreV1().ConfigMaps(ns.Name).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return errors.Join(err, err2)
	})
	if err := c.admin.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil {
		c.Fatal(err)
	}
	c.eventually("a deleted namespace is gone", func(ctx context.Context) error {
		_, err := c.admin.CoreV1().Namespaces().Get(ctx, ns.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there, error %v", err)
	})
}

func (c *cluster) secretsAreEncrypted() {
	ctx := context.Background()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, StringData: map[string]string{"key": "plain text"}}
	if _, err := c.admin.CoreV1().Secrets("default").Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	stored := c.etcdValue("/registry/secrets/default/kept")
	if !bytes.HasPrefix(stored, []byte("k8s:enc:secretbox:v1:")) || bytes.Contains(stored, []byte("plain text")) {
		c.Errorf("the Secret is stored as %q", stored)
	}
}

func (c *cluster) etcdValue(key string) []byte {
	dir := c.cfg.pkiDir()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, pki.EtcdClientCert), filepath.Join(dir, pki.EtcdClientKey))
	if err != nil {
		c.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, pki.EtcdCA))
	if err != nil {
		c.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://127.0.0.1:2379"},
		TLS:       &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool},
	})
	if err != nil {
		c.Fatal(err)
	}
	defer client.Close()
	resp, err := client.Get(context.Background(), key)
	if err != nil || len(resp.Kvs) != 1 {
		c.Fatalf("read %s from etcd: %v, %v", key, resp, err)
	}
	return resp.Kvs[0].Value
}

// podIsScheduledTo has a ReplicaSet's pod put on the only node, a fake that is
// ready.
func (c *cluster) podIsScheduledTo(node string) (pod corev1.Pod) {
	app := map[string]string{"app": "kept"}
	replicas := int32(1)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "kept", Namespace: "default"},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: app},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: app},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
			},
		},
	}
	if _, err := c.admin.AppsV1().ReplicaSets("default").Create(context.Background(), rs, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	c.eventually("the pod of a ReplicaSet is scheduled", func(ctx context.Context) error {
		var err error
		pod, err = c.pod(ctx, node)
		return err
	})
	return pod
}

// pod returns the pod of the ReplicaSet, or an error if it is not on node.
func (c *cluster) pod(ctx context.Context, node string) (corev1.Pod, error) {
	pods, err := c.admin.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=kept"})
	if err != nil {
		return corev1.Pod{}, err
	}
	if len(pods.Items) != 1 {
		return corev1.Pod{}, fmt.Errorf("there are %d pods", len(pods.Items))
	}
	pod := pods.Items[0]
	if pod.Spec.NodeName != node {
		return pod, fmt.Errorf("node is %q, conditions %v", pod.Spec.NodeName, pod.Status.Conditions)
	}
	return pod, nil
}

func (c *cluster) objectsAreStillThere(node string, before corev1.Pod) {
	ctx := context.Background()
	if pod, err := c.pod(ctx, node); err != nil || pod.UID != before.UID {
		c.Errorf("the pod is %s and was %s, error %v", pod.UID, before.UID, err)
	}
	secret, err := c.admin.CoreV1().Secrets("default").Get(ctx, "kept", metav1.GetOptions{})
	if err != nil || string(secret.Data["key"]) != "plain text" {
		c.Errorf("the Secret cannot be read: %v", err)
	}
}
