package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"weft.dev/weft/controlplane/upstream"
)

// orderPods has partWeft make pods; the query says how many.
const orderPods = "/pods"

// floorParallel is how many pods are made at once.
const floorParallel = 16

// makesPods answers orderPods: it makes plain pods through a client in the API
// server's process, and returns when they are made.
func makesPods(ctx context.Context, loopback *rest.Config) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.URL.Query().Get("n"))
		if err == nil {
			err = makePods(ctx, loopback, n)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, 0)
	}
}

func makePods(ctx context.Context, loopback *rest.Config, n int) error {
	client, err := kubernetes.NewForConfig(upstream.AsServiceAccount(loopback, "replicaset-controller"))
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(floorParallel)
	for i := range n {
		group.Go(func() error {
			pod := template("floor", "v1")
			_, err := client.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("floor-", i), Namespace: namespace, Labels: pod.Labels},
				Spec:       pod.Spec,
			}, metav1.CreateOptions{})
			return err
		})
	}
	return group.Wait()
}

// noControllers are under test on the side floor.
type noControllers struct{ *inside }

func (noControllers) cpu() (time.Duration, error) { return 0, nil }
func (noControllers) stop()                       {}

// least is the work of the side floor: the scenario's pods and nothing else,
// until all of them run.
func (n noControllers) least(s scenario) func(ctx context.Context, w *world) error {
	return func(ctx context.Context, w *world) error {
		want := s.pods(w)
		made := make(chan error, 1)
		go func() {
			_, err := n.order(fmt.Sprintf("%s?n=%d", orderPods, want))
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
