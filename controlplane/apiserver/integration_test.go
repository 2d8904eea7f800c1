package apiserver

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	etcdkubernetes "go.etcd.io/etcd/client/v3/kubernetes"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"weft.dev/weft/controlplane/etcd"
	"weft.dev/weft/controlplane/pki"
)

// freePorts returns TCP ports that nothing listens on.
func freePorts(t *testing.T) (ports [3]int) {
	t.Helper()
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}

// startServer starts a store that holds some keys and an API server, which end
// with the test. It returns how many clients of the store the server has
// opened so far.
func startServer(t *testing.T, held map[string]string) (*Server, *atomic.Int32) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts an API server, which takes some seconds")
	}
	dir, ports := t.TempDir(), freePorts(t)
	keys, err := pki.Open(pki.Config{
		Dir:              filepath.Join(dir, "pki"),
		ClusterName:      "test",
		ClusterDomain:    "cluster.local",
		AdvertiseAddress: netip.MustParseAddr("192.0.2.1"),
	})
	if err != nil {
		t.Fatal(err)
	}
	store, err := etcd.Start(t.Context(), etcd.Config{
		Dir: filepath.Join(dir, "etcd"), ClientPort: ports[0], PeerPort: ports[1],
		CAFile: keys.Path(pki.EtcdCA), CertFile: keys.Path(pki.EtcdServerCert), KeyFile: keys.Path(pki.EtcdServerKey),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	writer, err := store.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	for key, value := range held {
		if _, err := writer.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	opened := &atomic.Int32{}
	ctx, stop := context.WithCancel(context.Background())
	server, err := New(ctx, Config{
		PKIDir: filepath.Join(dir, "pki"), Dir: filepath.Join(dir, "apiserver"),
		AdvertiseAddress: netip.MustParseAddr("192.0.2.1"), BindPort: ports[2],
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, ClusterDomain: "cluster.local",
		Etcd: Etcd{Endpoints: []string{store.LocalEndpoint()}, Client: func() (*etcdkubernetes.Client, error) {
			opened.Add(1)
			return store.Client()
		}},
	})
	if err != nil {
		stop()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return server, opened
}

// as returns a client in the server's process that acts as a user.
func as(t *testing.T, server *Server, user rest.ImpersonationConfig) kubernetes.Interface {
	t.Helper()
	cfg := server.LoopbackConfig()
	cfg.Impersonate = user
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestClientsInTheServersProcess(t *testing.T) {
	server, opened := startServer(t, nil)
	ready, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := server.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
	if opened.Load() < 10 {
		t.Errorf("%d clients of the store in this process", opened.Load())
	}
	controller := rest.ImpersonationConfig{
		UserName: "system:serviceaccount:kube-system:replicaset-controller",
		Groups:   []string{"system:serviceaccounts", "system:authenticated"},
	}

	t.Run("rights", func(t *testing.T) {
		unknown := server.LoopbackConfig()
		unknown.BearerToken = "not the server's"
		stranger, err := kubernetes.NewForConfig(unknown)
		if err != nil {
			t.Fatal(err)
		}
		named := controller
		named.UID = "1"
		alone := controller
		alone.Groups = nil
		for _, c := range []struct {
			name    string
			client  kubernetes.Interface
			refused func(error) bool // nil: it may
		}{
			{"the server itself may do everything", as(t, server, rest.ImpersonationConfig{}), nil},
			{"a controller may not do what its role does not say", as(t, server, controller), apierrors.IsForbidden},
			{"nobody acts by a uid", as(t, server, named), apierrors.IsForbidden},
			{"nobody acts without groups", as(t, server, alone), apierrors.IsForbidden},
			{"without the server's token there is nothing", stranger, apierrors.IsUnauthorized},
		} {
			t.Run(c.name, func(t *testing.T) {
				_, err := c.client.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{})
				if c.refused == nil && err != nil || c.refused != nil && !c.refused(err) {
					t.Errorf("got error %v", err)
				}
			})
		}
		if _, err := as(t, server, controller).CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Errorf("a controller may not do what its role says: %v", err)
		}
	})

	t.Run("objects", func(t *testing.T) {
		maps := as(t, server, rest.ImpersonationConfig{}).CoreV1().ConfigMaps("default")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		watch, err := maps.Watch(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer watch.Stop()
		made, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for event := range watch.ResultChan() {
			if seen, ok := event.Object.(*corev1.ConfigMap); ok && seen.UID == made.UID {
				break
			}
		}
		if ctx.Err() != nil {
			t.Error("a watch did not bring what was written")
		}
		stale := made.DeepCopy()
		made.Data = map[string]string{"key": "value"}
		if _, err := maps.Update(ctx, made, metav1.UpdateOptions{}); err != nil {
			t.Error(err)
		}
		if _, err := maps.Update(ctx, stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			t.Errorf("a change of what has changed meanwhile: got error %v", err)
		}
		if list, err := maps.List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) == 0 {
			t.Errorf("listed %v, %v", list, err)
		}
		large := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "large"}, BinaryData: map[string][]byte{"key": make([]byte, 1<<20-1)}}
		large.Annotations = map[string]string{"more": strings.Repeat("a", 200<<10)}
		if _, err := maps.Create(ctx, large, metav1.CreateOptions{}); err != nil {
			t.Errorf("an object of over a mebibyte: %v", err)
		}
		if err := maps.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		if _, err := maps.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("a deleted object: got error %v", err)
		}
	})
}

// The repair that the feature gate AllowUnsafeMalformedObjectDeletion is for (KEP-3926).
func TestAnObjectThatCannotBeReadCanBeDeleted(t *testing.T) {
	server, _ := startServer(t, map[string]string{"/registry/podtemplates/default/corrupt": "no object"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	templates := as(t, server, rest.ImpersonationConfig{}).CoreV1().PodTemplates("default")
	const name = "corrupt"
	for { // until the server serves
		_, err := templates.Get(ctx, name, metav1.GetOptions{})
		if err != nil && strings.Contains(err.Error(), "corrupt object") {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("reading it does not say what is wrong; the last error is %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := templates.Delete(ctx, name, metav1.DeleteOptions{}); err == nil {
		t.Error("it is deleted as any other")
	}
	anyway := true
	if err := templates.Delete(ctx, name, metav1.DeleteOptions{IgnoreStoreReadErrorWithClusterBreakingPotential: &anyway}); err != nil {
		t.Fatalf("it cannot be deleted: %v", err)
	}
	if err := server.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}
