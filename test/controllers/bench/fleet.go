package main

import (
	"context"
	"fmt"
	"hash/fnv"
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
	writer podWriter
	nodes  []string
	work   chan func()
	failed atomic.Pointer[error]
	// binds is false where a scheduler does that.
	binds bool
}

// startFleet starts the nodes' work; it ends with ctx.
func startFleet(ctx context.Context, client kubernetes.Interface, writer podWriter, nodes []string, binds bool, parallel int) (*fleet, informers.SharedInformerFactory, error) {
	f := &fleet{writer: writer, nodes: nodes, binds: binds, work: make(chan func())}
	factory := informers.NewSharedInformerFactory(client, 0)
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
			queue.add(func() { f.check(ctx, "remove", f.writer.remove(ctx, pod)) })
		}
	case pod.Spec.NodeName == "":
		if before == nil && f.binds {
			queue.add(func() { f.check(ctx, "bind", f.writer.bind(ctx, pod, nodeFor(pod, f.nodes))) })
		}
	case pod.Status.Phase == corev1.PodPending && (before == nil || before.Spec.NodeName == ""):
		queue.add(func() { f.check(ctx, "report", f.writer.report(ctx, pod)) })
	}
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
