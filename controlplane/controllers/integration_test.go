package controllers_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	appsv1 "k8s.io/api/apps/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"weft.dev/weft/controlplane"
)

// inNamespace says to a test that it runs in a network namespace of its own.
const inNamespace = "WEFT_TEST_IN_NETWORK_NAMESPACE"

// TestOnARealControlPlane has every controller do its work against a real API
// server, with the rights that its service account really has. A simulated
// node runs the pods.
func TestOnARealControlPlane(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		runIsolated(t)
		return
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	w := start(t)
	w.node("node-1")
	w.node("node-2")

	t.Run("each node has pod addresses of its own", w.nodesHaveCIDRs)
	t.Run("a node's serving certificate is approved and signed", w.servingCertificate)
	t.Run("a Deployment rolls out and back", w.rollout)
	t.Run("a Recreate Deployment changes its template", w.recreate)
	t.Run("a ReplicationController keeps its pods", w.replication)
	t.Run("a DaemonSet is on every node, rolls out and back", w.daemons)
	t.Run("a StatefulSet keeps its members and their claims", w.members)
	t.Run("Jobs count their pods", w.jobs)
	t.Run("a Service publishes ready pods", w.endpoints)
	t.Run("nodes may read what an Ingress names", w.ingress)
	t.Run("a quota is reported", w.quota)
	t.Run("a claim gets a volume, and only its node ends it", w.localVolume)
	t.Run("a Service gets an address of a pool", w.loadBalancer)
}

// runIsolated runs the test in a process with a network namespace of its own.
func runIsolated(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	if testing.Short() {
		t.Skip("starts a whole control plane, which takes about 30 s")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

type world struct {
	admin kubernetes.Interface
	cfg   *rest.Config
}

func start(t *testing.T) world {
	cfg := controlplane.DefaultConfig()
	cfg.StateDir = filepath.Join(t.TempDir(), "state")
	cfg.AdvertiseAddress = address(t)
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- controlplane.Run(ctx, cfg) }()
	t.Cleanup(func() {
		stop()
		if err := <-stopped; err != nil {
			t.Errorf("the control plane stopped with %v", err)
		}
	})
	var w world
	eventually(t, "the control plane is ready", func() error {
		var err error
		if w.cfg, err = clientcmd.BuildConfigFromFlags("", cfg.AdminKubeconfig()); err != nil {
			return err
		}
		w.cfg.QPS = -1
		if w.admin, err = kubernetes.NewForConfig(w.cfg); err != nil {
			return err
		}
		_, err = w.admin.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	w.runPods(t)
	return w
}

// address makes a device with an address that is not a loopback address.
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

// eventually fails the test if f keeps failing for half a minute.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("not within 30 s: %s: %v", what, err)
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// node makes a node whose address ends as its name does.
func (w world) node(name string) {
	ctx := context.Background()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: "192.0.2.1" + name[len(name)-1:]},
		}},
	}
	if _, err := w.admin.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		slog.Error("create node", "error", err)
	}
}

// runPods plays scheduler and node for every pod.
func (w world) runPods(t *testing.T) {
	factory := informers.NewSharedInformerFactory(w.admin, 0)
	pods := factory.Core().V1().Pods().Informer()
	ctx, stop := context.WithCancel(context.Background())
	_, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { go w.runPod(ctx, obj.(*corev1.Pod)) },
		UpdateFunc: func(_, obj any) {
			if pod := obj.(*corev1.Pod); pod.DeletionTimestamp != nil {
				_ = w.admin.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *metav1.NewDeleteOptions(0))
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	t.Cleanup(func() {
		stop()
		factory.Shutdown()
	})
}

func (w world) runPod(ctx context.Context, pod *corev1.Pod) {
	api := w.admin.CoreV1().Pods(pod.Namespace)
	_ = api.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: wantedNode(pod)}}, metav1.CreateOptions{})
	if pod.Spec.Containers[0].Image == "broken" {
		return
	}
	patch := fmt.Sprintf(`{"status":{"phase":"Running","podIP":"10.244.9.9","podIPs":[{"ip":"10.244.9.9"}],"conditions":[{"type":"Ready","status":"True","lastTransitionTime":%q}]}}`,
		time.Now().UTC().Format(time.RFC3339))
	_, _ = api.Patch(ctx, pod.Name, "application/strategic-merge-patch+json", []byte(patch), metav1.PatchOptions{}, "status")
}

func (w world) nodesHaveCIDRs(t *testing.T) {
	eventually(t, "two different /24 of 10.244.0.0/16", func() error {
		nodes, err := w.admin.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, n := range nodes.Items {
			prefix, err := netip.ParsePrefix(n.Spec.PodCIDR)
			if err != nil || prefix.Bits() != 24 {
				return fmt.Errorf("%s has %q", n.Name, n.Spec.PodCIDR)
			}
			seen[n.Spec.PodCIDR] = true
		}
		if len(seen) != 2 {
			return fmt.Errorf("got %v", seen)
		}
		return nil
	})
}

func (w world) servingCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "system:node:node-1", Organization: []string{"system:nodes"}},
		DNSNames:    []string{"node-1"},
		IPAddresses: []net.IP{net.ParseIP("192.0.2.11")},
	}, key))
	asNode := rest.CopyConfig(w.cfg)
	asNode.Impersonate = rest.ImpersonationConfig{UserName: "system:node:node-1", Groups: []string{"system:nodes"}}
	client := must[*kubernetes.Clientset](t)(kubernetes.NewForConfig(asNode))
	csr := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "serving"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: certificatesv1.KubeletServingSignerName,
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
		},
	}
	must[*certificatesv1.CertificateSigningRequest](t)(client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), csr, metav1.CreateOptions{}))
	eventually(t, "there is a certificate", func() error {
		csr, err := w.admin.CertificatesV1().CertificateSigningRequests().Get(t.Context(), "serving", metav1.GetOptions{})
		if err == nil && len(csr.Status.Certificate) == 0 {
			err = fmt.Errorf("conditions %v", csr.Status.Conditions)
		}
		return err
	})
}

func template(app, image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			Containers:                    []corev1.Container{{Name: "c", Image: image}},
			TerminationGracePeriodSeconds: new(int64(1)),
		},
	}
}

func deployment(name string, n int32, strategy appsv1.DeploymentStrategyType) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &n,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: template(name, "v1"),
			Strategy: appsv1.DeploymentStrategy{Type: strategy},
		},
	}
}

func (w world) complete(t *testing.T, name string, want int32, revision string) {
	t.Helper()
	eventually(t, "the Deployment is complete", func() error {
		d, err := w.admin.AppsV1().Deployments("default").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := d.Status
		if s.ObservedGeneration != d.Generation || s.Replicas != want || s.UpdatedReplicas != want || s.AvailableReplicas != want ||
			d.Annotations["deployment.kubernetes.io/revision"] != revision {
			return fmt.Errorf("revision %s, status %+v", d.Annotations["deployment.kubernetes.io/revision"], s)
		}
		return nil
	})
}

func (w world) setImage(t *testing.T, name, image string) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"c","image":%q}]}}}}`, image)
	must[*appsv1.Deployment](t)(w.admin.AppsV1().Deployments("default").Patch(t.Context(), name, "application/strategic-merge-patch+json", []byte(patch), metav1.PatchOptions{}))
}

func (w world) rollout(t *testing.T) {
	d := deployment("web", 20, appsv1.RollingUpdateDeploymentStrategyType)
	must[*appsv1.Deployment](t)(w.admin.AppsV1().Deployments("default").Create(t.Context(), d, metav1.CreateOptions{}))
	begin := time.Now()
	w.complete(t, "web", 20, "1")
	t.Logf("20 pods after %s", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	w.setImage(t, "web", "v2")
	w.complete(t, "web", 20, "2")
	t.Logf("rolled out after %s", time.Since(begin).Round(time.Millisecond))
	w.setImage(t, "web", "broken")
	eventually(t, "the broken template has pods", func() error {
		sets, err := w.admin.AppsV1().ReplicaSets("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
		if err == nil && len(sets.Items) != 3 {
			err = fmt.Errorf("%d sets", len(sets.Items))
		}
		return err
	})
	w.setImage(t, "web", "v1")
	w.complete(t, "web", 20, "4")
}

func (w world) recreate(t *testing.T) {
	d := deployment("single", 2, appsv1.RecreateDeploymentStrategyType)
	must[*appsv1.Deployment](t)(w.admin.AppsV1().Deployments("default").Create(t.Context(), d, metav1.CreateOptions{}))
	w.complete(t, "single", 2, "1")
	w.setImage(t, "single", "v2")
	w.complete(t, "single", 2, "2")
}

func (w world) replication(t *testing.T) {
	rc := &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Name: "old"},
		Spec: corev1.ReplicationControllerSpec{
			Replicas: new(int32(3)),
			Selector: map[string]string{"app": "old"},
			Template: new(template("old", "v1")),
		},
	}
	must[*corev1.ReplicationController](t)(w.admin.CoreV1().ReplicationControllers("default").Create(t.Context(), rc, metav1.CreateOptions{}))
	eventually(t, "three pods are available", func() error {
		rc, err := w.admin.CoreV1().ReplicationControllers("default").Get(t.Context(), "old", metav1.GetOptions{})
		if err == nil && rc.Status.AvailableReplicas != 3 {
			err = fmt.Errorf("status %+v", rc.Status)
		}
		return err
	})
}

func (w world) endpoints(t *testing.T) {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
	must[*corev1.Service](t)(w.admin.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{}))
	eventually(t, "twenty endpoints are ready", func() error {
		list, err := w.admin.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=web"})
		if err != nil {
			return err
		}
		ready := 0
		for _, slice := range list.Items {
			for _, e := range slice.Endpoints {
				if *e.Conditions.Ready && *e.Conditions.Serving && !*e.Conditions.Terminating {
					ready++
				}
			}
		}
		if ready != 20 {
			return fmt.Errorf("%d ready endpoints in %d slices", ready, len(list.Items))
		}
		return nil
	})
}

func (w world) ingress(t *testing.T) {
	ingress := &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: networkingv1.IngressSpec{
			IngressClassName: new("weft"),
			DefaultBackend:   &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}}},
			TLS:              []networkingv1.IngressTLS{{Hosts: []string{"web.example.com"}, SecretName: "web-tls"}},
		},
	}
	must[*networkingv1.Ingress](t)(w.admin.NetworkingV1().Ingresses("default").Create(t.Context(), ingress, metav1.CreateOptions{}))
	asNode := rest.CopyConfig(w.cfg)
	asNode.Impersonate = rest.ImpersonationConfig{UserName: "system:node:node-2", Groups: []string{"system:nodes"}}
	client := must[*kubernetes.Clientset](t)(kubernetes.NewForConfig(asNode))
	must[*corev1.Secret](t)(w.admin.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "web-tls"}}, metav1.CreateOptions{}))
	must[*corev1.Secret](t)(w.admin.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "private"}}, metav1.CreateOptions{}))
	eventually(t, "the node may read the Secret", func() error {
		_, err := client.CoreV1().Secrets("default").Get(t.Context(), "web-tls", metav1.GetOptions{})
		return err
	})
	if _, err := client.CoreV1().Secrets("default").Get(t.Context(), "private", metav1.GetOptions{}); err == nil {
		t.Error("the node may read another Secret, too")
	}
}

func (w world) quota(t *testing.T) {
	ctx := t.Context()
	must[*corev1.Namespace](t)(w.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "small"}}, metav1.CreateOptions{}))
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "q"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("2")}},
	}
	must[*corev1.ResourceQuota](t)(w.admin.CoreV1().ResourceQuotas("small").Create(ctx, quota, metav1.CreateOptions{}))
	eventually(t, "the quota is in force", func() error {
		q, err := w.admin.CoreV1().ResourceQuotas("small").Get(ctx, "q", metav1.GetOptions{})
		if err == nil && len(q.Status.Hard) == 0 {
			err = errors.New("no status")
		}
		_, err2 := w.admin.CoreV1().ServiceAccounts("small").Get(ctx, "default", metav1.GetOptions{})
		return errors.Join(err, err2)
	})
	must[*appsv1.Deployment](t)(w.admin.AppsV1().Deployments("small").Create(ctx, deployment("web", 3, appsv1.RollingUpdateDeploymentStrategyType), metav1.CreateOptions{}))
	failure := func() *appsv1.DeploymentCondition {
		d := must[*appsv1.Deployment](t)(w.admin.AppsV1().Deployments("small").Get(ctx, "web", metav1.GetOptions{}))
		for _, c := range d.Status.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure {
				return &c
			}
		}
		return nil
	}
	eventually(t, "the Deployment says so", func() error {
		if c := failure(); c == nil || c.Reason != "FailedCreate" {
			return fmt.Errorf("condition %+v", c)
		}
		return nil
	})
}
