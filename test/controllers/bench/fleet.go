package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// runsToEnd is the label of pods that succeed as soon as they run.
const runsToEnd = "bench/runs-to-end"

// fleet plays every node: it binds pods, reports them Running and Ready, or
// Succeeded, and ends those that are deleted, each at once. It is quick and
// the same for all sides, so that the controllers are what takes time.
type fleet struct {
	client kubernetes.Interface
	nodes  []string
	work   chan func()
	failed atomic.Pointer[error]
	// binds is false where a scheduler does that.
	binds bool
}

// startFleet starts the nodes' work; it ends with ctx.
func startFleet(ctx context.Context, client kubernetes.Interface, nodes []string, binds bool, parallel int) (*fleet, informers.SharedInformerFactory, error) {
	f := &fleet{client: client, nodes: nodes, binds: binds, work: make(chan func())}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trim))
	queue := &unbounded{wake: make(chan struct{}, 1)}
	_, err := factory.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { f.react(ctx, queue, nil, obj.(*corev1.Pod)) },
		UpdateFunc: func(before, after any) {
			f.react(ctx, queue, before.(*corev1.Pod), after.(*corev1.Pod))
		},
	})
	if err != nil {
		return nil, nil, err
	}
	go queue.feed(ctx, f.work)
	for range parallel {
		go func() {
			for {
				select {
				case do := <-f.work:
					do()
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	return f, factory, nil
}

// react does what a node does when it sees the pod like this for the first time.
func (f *fleet) react(ctx context.Context, queue *unbounded, before, pod *corev1.Pod) {
	switch {
	case pod.DeletionTimestamp != nil:
		if before == nil || before.DeletionTimestamp == nil {
			queue.add(func() { f.remove(ctx, pod) })
		}
	case pod.Spec.NodeName == "":
		if before == nil && f.binds {
			queue.add(func() { f.bind(ctx, pod) })
		}
	case pod.Status.Phase == corev1.PodPending && (before == nil || before.Spec.NodeName == ""):
		queue.add(func() { f.run(ctx, pod) })
	}
}

func (f *fleet) bind(ctx context.Context, pod *corev1.Pod) {
	f.check(ctx, "bind", f.client.CoreV1().Pods(pod.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: nodeFor(pod, f.nodes)},
	}, metav1.CreateOptions{}))
}

// nodeFor is the node that the pod asks for by name, as pods of DaemonSets do,
// or any.
func nodeFor(pod *corev1.Pod, nodes []string) string {
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, field := range term.MatchFields {
				if field.Key == metav1.ObjectNameField && len(field.Values) == 1 {
					return field.Values[0]
				}
			}
		}
	}
	hash := fnv.New32a()
	hash.Write([]byte(pod.UID))
	return nodes[hash.Sum32()%uint32(len(nodes))]
}

// address is every pod's.
const address = "10.244.0.9"

func (f *fleet) run(ctx context.Context, pod *corev1.Pod) {
	phase, ready := corev1.PodRunning, corev1.ConditionTrue
	if _, ok := pod.Labels[runsToEnd]; ok {
		phase, ready = corev1.PodSucceeded, corev1.ConditionFalse
	}
	report := *pod
	report.ResourceVersion = "" // whatever others have changed meanwhile
	report.Status.Phase, report.Status.PodIP, report.Status.PodIPs = phase, address, []corev1.PodIP{{IP: address}}
	report.Status.Conditions = append(slices.Clone(pod.Status.Conditions), corev1.PodCondition{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.Now()})
	_, err := f.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, &report, metav1.UpdateOptions{})
	f.check(ctx, "report", err)
}

func (f *fleet) remove(ctx context.Context, pod *corev1.Pod) {
	options := metav1.NewPreconditionDeleteOptions(string(pod.UID))
	options.GracePeriodSeconds = new(int64)
	f.check(ctx, "remove", f.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *options))
}

// check keeps an error that says more than that the pod is gone or being
// deleted meanwhile.
func (f *fleet) check(ctx context.Context, what string, err error) {
	if err == nil || ctx.Err() != nil || isLate(err) {
		return
	}
	err = fmt.Errorf("node: %s pod: %w", what, err)
	f.failed.CompareAndSwap(nil, &err)
}

// err returns the first unexpected error.
func (f *fleet) err() error {
	if p := f.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// unbounded is a queue that never makes an event handler wait.
type unbounded struct {
	mu    sync.Mutex
	items []func()
	wake  chan struct{}
}

func (q *unbounded) add(item func()) {
	q.mu.Lock()
	q.items = append(q.items, item)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *unbounded) take() []func() {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = nil
	return items
}

// feed passes items on in order until ctx is done.
func (q *unbounded) feed(ctx context.Context, to chan<- func()) {
	for {
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
		for _, item := range q.take() {
			select {
			case to <- item:
			case <-ctx.Done():
				return
			}
		}
	}
}
