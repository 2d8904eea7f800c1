package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"

	"weft.dev/weft/controlplane/etcd"
)

// podWriter is how simulated nodes write about pods.
type podWriter interface {
	// bind gives a pod that has no node one.
	bind(ctx context.Context, pod *corev1.Pod, node string) error
	// report says that a bound pod runs, or has run.
	report(ctx context.Context, pod *corev1.Pod) error
	// remove ends a pod that is to be deleted.
	remove(ctx context.Context, pod *corev1.Pod) error
}

// The ways to write.
const (
	throughStore  = "store"
	throughServer = "server"
)

// serverWriter writes through the API server, as schedulers and agents do.
// That costs it more than what most controllers write.
type serverWriter struct{ client kubernetes.Interface }

func (s serverWriter) bind(ctx context.Context, pod *corev1.Pod, node string) error {
	return s.client.CoreV1().Pods(pod.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
}

func (s serverWriter) report(ctx context.Context, pod *corev1.Pod) error {
	report := *pod
	report.ResourceVersion = "" // whatever others have changed meanwhile
	started(&report)
	_, err := s.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, &report, metav1.UpdateOptions{})
	return err
}

func (s serverWriter) remove(ctx context.Context, pod *corev1.Pod) error {
	options := metav1.NewPreconditionDeleteOptions(string(pod.UID))
	options.GracePeriodSeconds = new(int64)
	return s.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *options)
}

// address is every pod's.
const address = "10.244.0.9"

// started sets the status of a pod that runs, or has run to its end.
func started(pod *corev1.Pod) {
	phase, ready := corev1.PodRunning, corev1.ConditionTrue
	if _, ok := pod.Labels[runsToEnd]; ok {
		phase, ready = corev1.PodSucceeded, corev1.ConditionFalse
	}
	pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = phase, address, []corev1.PodIP{{IP: address}}
	setCondition(pod, corev1.PodReady, ready)
}

// setCondition adds a condition without changing those that the pod shares
// with a cache.
func setCondition(pod *corev1.Pod, kind corev1.PodConditionType, status corev1.ConditionStatus) {
	pod.Status.Conditions = append(slices.Clone(pod.Status.Conditions), corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: metav1.Now()})
}

// storeWriter writes into the API server's store, past the API server: a pod is
// bound and started in one small transaction. Nodes so cheap leave the machine
// to the controllers and to what the API server does for these.
type storeWriter struct {
	store *clientv3.Client
	codec runtime.Codec
	// rest is for pods that need the API server to go: those with finalizers.
	rest serverWriter
}

// newStoreWriter opens the store of the server whose state is in dir; it is
// closed when ctx ends.
func newStoreWriter(ctx context.Context, dir string, client kubernetes.Interface) (*storeWriter, error) {
	endpoint, err := etcd.SocketEndpoint(etcdDir(dir))
	if err != nil {
		return nil, err
	}
	store, err := clientv3.New(clientv3.Config{
		Context:     ctx,
		Endpoints:   []string{endpoint},
		DialTimeout: 10 * time.Second,
		Logger:      zap.NewNop(), // errors are returned
	})
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	context.AfterFunc(ctx, func() { store.Close() })
	stored := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	return &storeWriter{
		store: store,
		codec: scheme.Codecs.CodecForVersions(stored, stored, corev1.SchemeGroupVersion, corev1.SchemeGroupVersion),
		rest:  serverWriter{client},
	}, nil
}

// keyOf is where the API server keeps a pod.
func keyOf(pod *corev1.Pod) string { return "/registry/pods/" + pod.Namespace + "/" + pod.Name }

// unchanged is true as long as nobody has written the pod since it was read.
func unchanged(pod *corev1.Pod) (clientv3.Cmp, error) {
	revision, err := strconv.ParseInt(pod.ResourceVersion, 10, 64)
	if err != nil {
		return clientv3.Cmp{}, fmt.Errorf("resourceVersion: %w", err)
	}
	return clientv3.Compare(clientv3.ModRevision(keyOf(pod)), "=", revision), nil
}

func (s *storeWriter) bind(ctx context.Context, pod *corev1.Pod, node string) error {
	return s.update(ctx, pod, func(p *corev1.Pod) {
		p.Spec.NodeName = node
		setCondition(p, corev1.PodScheduled, corev1.ConditionTrue)
		started(p)
	})
}

func (s *storeWriter) report(ctx context.Context, pod *corev1.Pod) error {
	return s.update(ctx, pod, started)
}

// update changes a pod unless it is gone, or to be deleted, meanwhile.
func (s *storeWriter) update(ctx context.Context, pod *corev1.Pod, change func(*corev1.Pod)) error {
	for {
		asSeen, err := unchanged(pod)
		if err != nil {
			return err
		}
		next := *pod
		next.ResourceVersion = "" // it is the transaction's revision
		change(&next)
		data, err := runtime.Encode(s.codec, &next)
		if err != nil {
			return err
		}
		key := keyOf(pod)
		answer, err := s.store.Txn(ctx).If(asSeen).
			Then(clientv3.OpPut(key, string(data))).
			Else(clientv3.OpGet(key)).Commit()
		if err != nil || answer.Succeeded {
			return err
		}
		found := answer.Responses[0].GetResponseRange().Kvs
		if len(found) == 0 {
			return nil
		}
		var current corev1.Pod
		if err := runtime.DecodeInto(s.codec, found[0].Value, &current); err != nil {
			return err
		}
		if current.UID != pod.UID || current.DeletionTimestamp != nil {
			return nil
		}
		current.ResourceVersion = strconv.FormatInt(found[0].ModRevision, 10)
		pod = &current
	}
}

func (s *storeWriter) remove(ctx context.Context, pod *corev1.Pod) error {
	asSeen, err := unchanged(pod)
	if err != nil {
		return err
	}
	if len(pod.Finalizers) == 0 {
		answer, err := s.store.Txn(ctx).If(asSeen).Then(clientv3.OpDelete(keyOf(pod))).Commit()
		if err != nil || answer.Succeeded {
			return err
		}
	}
	return s.rest.remove(ctx, pod)
}
