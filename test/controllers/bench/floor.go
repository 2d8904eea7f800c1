package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"weft.dev/weft/controlplane/upstream"
)

// Orders to partWeft on the side floor: to get ready for the pods in the
// order's body, and to make them.
const (
	orderPods = "/pods"
	orderMake = "/make"
)

// floorParallel is how many pods are made at once, as by Weft's controllers.
const floorParallel = 16

// floorMaker makes pods that it is told, and does the least that goes with it
// for any controller: it watches them, in the API server's process.
type floorMaker struct {
	loopback *rest.Config
	client   kubernetes.Interface
	pods     []*corev1.Pod
}

// ready reads the pods and waits until they are watched, which ends with ctx.
func (m *floorMaker) ready(ctx context.Context, r *http.Request) error {
	err := json.NewDecoder(r.Body).Decode(&m.pods)
	if err != nil {
		return fmt.Errorf("read pods: %w", err)
	}
	m.client, err = kubernetes.NewForConfig(upstream.AsServiceAccount(m.loopback, "replicaset-controller"))
	if err != nil {
		return err
	}
	shared := informers.NewSharedInformerFactoryWithOptions(m.client, 0, informers.WithTransform(trim))
	shared.Core().V1().Pods().Informer()
	shared.Start(ctx.Done())
	shared.WaitForCacheSync(ctx.Done())
	return ctx.Err()
}

// makePods makes the pods and returns when they are made.
func (m *floorMaker) makePods(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(floorParallel)
	for _, pod := range m.pods {
		group.Go(func() error {
			_, err := m.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
			return err
		})
	}
	return group.Wait()
}

// asCreated are pods as their controller created them, without what the API
// server and nodes have added.
func asCreated(pods []*corev1.Pod) []*corev1.Pod {
	created := make([]*corev1.Pod, len(pods))
	for i, pod := range pods {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Name: pod.Name, GenerateName: pod.GenerateName, Namespace: pod.Namespace,
				Labels: pod.Labels, Annotations: pod.Annotations, OwnerReferences: pod.OwnerReferences,
			},
			Spec: *pod.Spec.DeepCopy(),
		}
		if p.GenerateName != "" {
			p.Name = ""
		}
		p.Spec.NodeName = ""
		isToken := func(name string) bool { return strings.HasPrefix(name, "kube-api-access-") }
		p.Spec.Volumes = slices.DeleteFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return isToken(v.Name) })
		for i := range p.Spec.Containers {
			c := &p.Spec.Containers[i]
			c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return isToken(m.Name) })
		}
		created[i] = p
	}
	return created
}

// noControllers are under test on the side floor.
type noControllers struct{ *inside }

func (noControllers) cpu() (time.Duration, error) { return 0, nil }
func (noControllers) stop()                       {}

// getReady has the side floor ready to make pods.
func (n noControllers) getReady(pods []*corev1.Pod) error {
	body, err := json.Marshal(pods)
	if err == nil {
		_, err = n.order(orderPods, bytes.NewReader(body))
	}
	return err
}

// least is the work of the side floor: so many pods and nothing else, until
// all of them run.
func (n noControllers) least(want int) func(ctx context.Context, w *world) error {
	return func(ctx context.Context, w *world) error {
		made := make(chan error, 1)
		go func() {
			_, err := n.order(orderMake, http.NoBody)
			made <- err
		}()
		err := w.until(ctx, "pods running", want, func() int {
			list, _ := w.pods.List(labels.Everything())
			return count(list, func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
		})
		if err != nil {
			return err
		}
		return <-made
	}
}
