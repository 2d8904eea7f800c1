package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// namespace is where everything happens.
const namespace = "bench"

// scenario is work for the controllers.
type scenario struct {
	name, what string
	// nodes is how many nodes there are; it is not scaled if fixed.
	nodes int
	// prepare is not measured; may be nil.
	prepare func(ctx context.Context, w *world) error
	// work is measured until it returns.
	work func(ctx context.Context, w *world) error
	// pods is how many pods the work makes, for ratios per pod.
	pods func(w *world) int
	// hasFloor says that all that has to be written, whoever the controllers
	// are, are those pods.
	hasFloor bool
	// idle says that what prepare made is left alone and watched.
	idle bool
}

var scenarios = []scenario{
	{
		name: "create", what: "10 000 pods through 200 Deployments", nodes: 100,
		work:     func(ctx context.Context, w *world) error { return w.deploy(ctx, w.scaled(200), 50) },
		pods:     func(w *world) int { return w.scaled(200) * 50 },
		hasFloor: true,
	},
	{
		name: "rollout", what: "rolling update of 1 000 Deployments of 2 pods, 5 times", nodes: 100,
		prepare: func(ctx context.Context, w *world) error { return w.deploy(ctx, w.scaled(1000), 2) },
		work: func(ctx context.Context, w *world) error {
			for i := range 5 {
				if err := w.rollOut(ctx, w.scaled(1000), fmt.Sprint("v", i+2)); err != nil {
					return err
				}
			}
			return nil
		},
		pods: func(w *world) int { return w.scaled(1000) * 2 * 5 },
	},
	{
		name: "jobs", what: "2 000 Jobs to completion", nodes: 100,
		work: func(ctx context.Context, w *world) error { return w.runJobs(ctx, w.scaled(2000)) },
		pods: func(w *world) int { return w.scaled(2000) },
	},
	{
		name: "statefulset", what: "a parallel StatefulSet of 500 pods", nodes: 100,
		work:     func(ctx context.Context, w *world) error { return w.runStatefulSet(ctx, int32(w.scaled(500))) },
		pods:     func(w *world) int { return w.scaled(500) },
		hasFloor: true,
	},
	{
		name: "daemonset", what: "a DaemonSet over 1 000 nodes", nodes: 1000,
		work:     func(ctx context.Context, w *world) error { return w.runDaemonSet(ctx) },
		pods:     func(w *world) int { return w.scaled(1000) },
		hasFloor: true,
	},
	{
		name: "idle", what: "1 000 idle Deployments on a whole weft-server", nodes: 10, idle: true,
		prepare: func(ctx context.Context, w *world) error { return w.deploy(ctx, w.scaled(1000), 1) },
	},
}

func scenarioNames() string {
	var names []string
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return strings.Join(names, ", ")
}

// chosen returns the scenarios of a comma-separated list of names, all for "".
func chosen(list string) ([]scenario, error) {
	if list == "" {
		return scenarios, nil
	}
	var picked []scenario
	for name := range strings.SplitSeq(list, ",") {
		found := false
		for _, s := range scenarios {
			if s.name == name {
				picked, found = append(picked, s), true
			}
		}
		if !found {
			return nil, fmt.Errorf("-scenarios: there is no %q, only %s", name, scenarioNames())
		}
	}
	return picked, nil
}

func object(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: namespace}
}

func selector(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func template(name, image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
	}
}

func deploymentName(i int) string { return fmt.Sprintf("web-%04d", i) }

// deploy makes n Deployments of size pods each and waits for all.
func (w *world) deploy(ctx context.Context, n int, size int32) error {
	err := w.each(ctx, n, func(ctx context.Context, i int) error {
		name := deploymentName(i)
		_, err := w.client.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{
			ObjectMeta: object(name),
			Spec:       appsv1.DeploymentSpec{Replicas: &size, Selector: selector(name), Template: template(name, "v1")},
		}, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	return w.deployed(ctx, n)
}

// rollOut gives n Deployments another image and waits for all.
func (w *world) rollOut(ctx context.Context, n int, image string) error {
	patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"c","image":%q}]}}}}`, image)
	err := w.each(ctx, n, func(ctx context.Context, i int) error {
		_, err := w.client.AppsV1().Deployments(namespace).Patch(ctx, deploymentName(i), types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return err
	}
	return w.until(ctx, "rolled out to "+image, n, func() int {
		list, _ := w.deployments.List(labels.Everything()) // reads a cache: no error
		return count(list, func(d *appsv1.Deployment) bool {
			return d.Spec.Template.Spec.Containers[0].Image == image && isDeployed(d)
		})
	})
}

func (w *world) deployed(ctx context.Context, n int) error {
	return w.until(ctx, "Deployments complete", n, func() int {
		list, _ := w.deployments.List(labels.Everything())
		return count(list, isDeployed)
	})
}

func isDeployed(d *appsv1.Deployment) bool {
	n, s := *d.Spec.Replicas, d.Status
	return s.ObservedGeneration >= d.Generation && s.Replicas == n && s.UpdatedReplicas == n && s.AvailableReplicas == n
}

// runJobs makes n Jobs of one pod and waits until all are complete.
func (w *world) runJobs(ctx context.Context, n int) error {
	err := w.each(ctx, n, func(ctx context.Context, i int) error {
		name := fmt.Sprintf("job-%04d", i)
		pod := template(name, "v1")
		pod.Labels[runsToEnd] = ""
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
		_, err := w.client.BatchV1().Jobs(namespace).Create(ctx, &batchv1.Job{
			ObjectMeta: object(name),
			Spec:       batchv1.JobSpec{Template: pod},
		}, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	return w.until(ctx, "Jobs complete", n, func() int {
		list, _ := w.jobs.List(labels.Everything())
		return count(list, func(j *batchv1.Job) bool { return j.Status.CompletionTime != nil && j.Status.Succeeded == 1 })
	})
}

func (w *world) runStatefulSet(ctx context.Context, n int32) error {
	_, err := w.client.AppsV1().StatefulSets(namespace).Create(ctx, &appsv1.StatefulSet{
		ObjectMeta: object("db"),
		Spec: appsv1.StatefulSetSpec{
			Replicas: &n, ServiceName: "db", Selector: selector("db"), Template: template("db", "v1"),
			PodManagementPolicy: appsv1.ParallelPodManagement,
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return w.until(ctx, "pods available", int(n), func() int {
		list, _ := w.statefulSets.List(labels.Everything())
		return sum(list, func(s *appsv1.StatefulSet) int32 { return s.Status.AvailableReplicas })
	})
}

func (w *world) runDaemonSet(ctx context.Context) error {
	_, err := w.client.AppsV1().DaemonSets(namespace).Create(ctx, &appsv1.DaemonSet{
		ObjectMeta: object("agent"),
		Spec:       appsv1.DaemonSetSpec{Selector: selector("agent"), Template: template("agent", "v1")},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return w.until(ctx, "pods available", len(w.nodes), func() int {
		list, _ := w.daemonSets.List(labels.Everything())
		return sum(list, func(d *appsv1.DaemonSet) int32 { return d.Status.NumberAvailable })
	})
}

func count[T any](list []T, is func(T) bool) int {
	n := 0
	for _, object := range list {
		if is(object) {
			n++
		}
	}
	return n
}

func sum[T any](list []T, of func(T) int32) int {
	n := 0
	for _, object := range list {
		n += int(of(object))
	}
	return n
}

// warm waits until the controllers under test work, by a small Deployment,
// which it takes away again.
func (w *world) warm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	const name = "warm"
	size := int32(1)
	deployments := w.client.AppsV1().Deployments(namespace)
	_, err := deployments.Create(ctx, &appsv1.Deployment{
		ObjectMeta: object(name),
		Spec:       appsv1.DeploymentSpec{Replicas: &size, Selector: selector(name), Template: template(name, "v1")},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	err = w.until(ctx, "Deployments complete", 1, func() int {
		d, err := w.deployments.Deployments(namespace).Get(name)
		if err == nil && isDeployed(d) {
			return 1
		}
		return 0
	})
	if err != nil {
		return fmt.Errorf("the controllers do not work: %w", err)
	}
	return w.remove(ctx, name)
}

// remove takes a Deployment away with its pods, as the garbage collector would.
func (w *world) remove(ctx context.Context, name string) error {
	mine := metav1.ListOptions{LabelSelector: "app=" + name}
	apps := w.client.AppsV1()
	if err := apps.Deployments(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	if err := apps.ReplicaSets(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, mine); err != nil {
		return err
	}
	// A controller that has not heard yet that its set is gone makes a pod anew.
	var deleted time.Time
	var deleteErr error
	err := w.until(ctx, "pods left", 0, func() int {
		list, _ := w.pods.List(labels.SelectorFromSet(labels.Set{"app": name}))
		if len(list) > 0 && time.Since(deleted) > 500*time.Millisecond {
			deleted = time.Now()
			deleteErr = w.client.CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, mine)
		}
		return len(list)
	})
	return errors.Join(err, deleteErr)
}
