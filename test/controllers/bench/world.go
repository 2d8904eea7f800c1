package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	batchlisters "k8s.io/client-go/listers/batch/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
)

// world is one API server with its simulated users and nodes.
type world struct {
	options
	client kubernetes.Interface
	sent   counter
	fleet  *fleet
	nodes  []string
	report func(what string, have, want int)
	// alive says that the processes still run.
	alive func() error

	pods         corelisters.PodLister
	deployments  appslisters.DeploymentLister
	statefulSets appslisters.StatefulSetLister
	daemonSets   appslisters.DaemonSetLister
	jobs         batchlisters.JobLister
}

// newWorld makes nodes for the server whose state is in dir and starts their
// simulation; it ends with ctx.
func newWorld(ctx context.Context, o options, dir, kubeconfig string, s scenario) (*world, error) {
	w := &world{options: o, sent: counter{mu: &sync.Mutex{}, sent: calls{}}}
	cfg, err := clientConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	// Users and nodes must not wait for their share of the API server.
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "bench", Groups: []string{"system:masters"}}
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		w.sent.next = next
		return w.sent
	})
	if w.client, err = kubernetes.NewForConfig(cfg); err != nil {
		return nil, err
	}
	if err := w.first(ctx); err != nil {
		return nil, err
	}
	for i := range max(w.scaled(s.nodes), 1) {
		w.nodes = append(w.nodes, fmt.Sprintf("node-%04d", i))
	}
	if err := w.each(ctx, len(w.nodes), w.node); err != nil {
		return nil, err
	}
	writer := podWriter(serverWriter{w.client})
	if o.nodes == throughStore {
		if writer, err = newStoreWriter(ctx, dir, w.client); err != nil {
			return nil, err
		}
	}
	return w, w.watch(ctx, writer, !s.idle)
}

// first makes the namespace and what its pods need, and the rights of
// kube-controller-manager, which has them through its controllers' service
// accounts on a real cluster.
func (w *world) first(ctx context.Context) error {
	_, err := w.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = w.client.CoreV1().ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	_, err = w.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "bench"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: controllerManagerUser}},
	}, metav1.CreateOptions{})
	return err
}

// node makes the ith node, large, ready, and with pod addresses of its own.
func (w *world) node(ctx context.Context, i int) error {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("1000"),
		corev1.ResourceMemory: resource.MustParse("1Ti"),
		corev1.ResourcePods:   resource.MustParse("10000"),
	}
	cidr := fmt.Sprintf("10.%d.%d.0/24", 128+i/256, i%256)
	_, err := w.client.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: w.nodes[i]},
		Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity,
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	// Every new node is tainted as not ready, and nobody here would notice
	// that it is.
	_, err = w.client.CoreV1().Nodes().Patch(ctx, w.nodes[i], types.MergePatchType, []byte(`{"spec":{"taints":null}}`), metav1.PatchOptions{})
	return err
}

// watch fills the caches and starts the nodes, which write by writer.
func (w *world) watch(ctx context.Context, writer podWriter, binds bool) error {
	f, factory, err := startFleet(ctx, w.client, writer, w.nodes, binds, w.parallel)
	if err != nil {
		return err
	}
	w.fleet = f
	w.pods = factory.Core().V1().Pods().Lister()
	w.deployments = factory.Apps().V1().Deployments().Lister()
	w.statefulSets = factory.Apps().V1().StatefulSets().Lister()
	w.daemonSets = factory.Apps().V1().DaemonSets().Lister()
	w.jobs = factory.Batch().V1().Jobs().Lister()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	return ctx.Err()
}

// scaled is n times the scale, at least 1.
func (w *world) scaled(n int) int { return max(int(float64(n)*w.scale), 1) }

// each calls do for 0 … n-1, several at once.
func (w *world) each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(w.parallel)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}

// look is how often a world looks whether something has come true.
const look = 20 * time.Millisecond

// until waits until have returns want.
func (w *world) until(ctx context.Context, what string, want int, have func() int) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		n := have()
		if w.report != nil {
			w.report(what, n, want)
		}
		if n == want {
			return nil
		}
		if err := w.fleet.err(); err != nil {
			// A server that has crashed is known a little later than its
			// clients' errors.
			time.Sleep(100 * time.Millisecond)
			return errors.Join(w.alive(), err)
		}
		if err := w.alive(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d %s: %w", n, want, what, context.Cause(ctx))
		}
	}
}
