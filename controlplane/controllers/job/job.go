// Package job runs pods until enough of them have succeeded.
//
// The difficulty is to count: a pod may be deleted by anybody as soon as it
// has ended, and the controller may be killed at any time, but a finished Job
// must say exactly how many pods succeeded and failed. So each pod is created
// with a finalizer that holds it until it is counted, and the status takes
// pods in by UID before their finalizers go, see settlement.
//
//	Job, pods ─decide─► plan ─► delete, create pods ─settle─► status ─► finalizers
//
// What the fields of a Job mean is in survey.go and ending.go (what has
// happened), decide.go (pods), settle.go (status). Finalizers of pods whose
// Job is gone are taken away by orphans.go. Jobs with a ttlSecondsAfterFinished are
// deleted by upstream's controller.
package job

import (
	"context"
	"errors"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	batchlisters "k8s.io/client-go/listers/batch/v1"

	"weft.dev/weft/controlplane/reconcile"
)

var gvk = batchv1.SchemeGroupVersion.WithKind("Job")

// Controller runs the pods of all Jobs that do not name another controller.
type Controller struct {
	*reconcile.Loop
	orphans   *orphans
	client    kubernetes.Interface
	events    *reconcile.Events
	jobs      batchlisters.JobLister
	jobStore  reconcile.Store
	pods      reconcile.ByController[*corev1.Pod]
	writer    reconcile.PodWriter
	statuses  reconcile.Statuses
	fence     reconcile.Fence
	deletions reconcile.Deletions
	memories  memories
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	podInformer := env.Informers.Core().V1().Pods().Informer()
	pods, err := reconcile.NewByController[*corev1.Pod](podInformer)
	if err != nil {
		return nil, err
	}
	jobs := env.Informers.Batch().V1().Jobs()
	c := &Controller{
		client:   env.Client,
		events:   env.NewEvents(),
		jobs:     jobs.Lister(),
		jobStore: jobs.Informer().GetStore(),
		pods:     pods,
	}
	c.writer = reconcile.PodWriter{Client: env.Client, Events: c.events, Store: podInformer.GetStore(), Fence: &c.fence, Deletions: &c.deletions}
	c.Loop = env.NewLoop(reconcile.Config{Workers: 16, Reconcile: c.Reconcile, Events: c.events})
	c.statuses = reconcile.Statuses{AddAfter: c.AddAfter, Fence: &c.fence, Store: c.jobStore}
	c.orphans, err = newOrphans(env, pods)
	return c, errors.Join(err,
		c.WatchSelf(jobs.Informer()),
		c.WatchOwned(podInformer, gvk.Kind, c.matching),
	)
}

// matching returns the Jobs that select an orphan.
func (c *Controller) matching(pod metav1.Object) []types.NamespacedName {
	all, _ := c.jobs.Jobs(pod.GetNamespace()).List(labels.Everything()) // reads a cache: no error
	return reconcile.MayAdopt(all, func(job *batchv1.Job) *metav1.LabelSelector { return job.Spec.Selector }, pod.GetLabels())
}

// Run works until ctx is done.
func (c *Controller) Run(ctx context.Context) error {
	var both sync.WaitGroup
	both.Go(func() { _ = c.orphans.Run(ctx) }) // a Loop returns no error
	err := c.Loop.Run(ctx)
	both.Wait()
	return err
}

// --- Reconcile ---

// Reconcile brings one Job a step closer to its spec. It is safe to repeat.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	if err := c.fence.Check(key); err != nil {
		return err
	}
	job, err := c.jobs.Jobs(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		c.forget(key)
		return nil
	}
	if err != nil || isManagedElsewhere(job) {
		return err
	}
	if isOver(job) {
		c.forget(key)
		return c.release(ctx, key, c.pods.Of(job.UID))
	}
	selector, err := metav1.LabelSelectorAsSelector(job.Spec.Selector)
	if err != nil {
		return nil // refused by validation; nothing to do until it is edited
	}
	now := time.Now()
	pods, err := c.claim(ctx, key, job, selector, now)
	if err != nil {
		return err
	}
	known := c.memories.of(key, job.UID)
	plan := decide(known.begun(job), pods, known.backoff, now)
	known.backoff = plan.Backoff
	c.memories.keep(key, known)
	return c.carryOut(ctx, key, job, plan)
}

// isManagedElsewhere reports whether another controller looks after the Job (KEP-4368).
func isManagedElsewhere(job *batchv1.Job) bool {
	return job.Spec.ManagedBy != nil && *job.Spec.ManagedBy != batchv1.JobControllerName
}

func (c *Controller) forget(key types.NamespacedName) {
	c.fence.Forget(key)
	c.deletions.Forget(key)
	c.memories.forget(key)
	c.statuses.Forget(key)
}

// claim returns the Job's pods, those included that have ended. If it adopts
// or releases any, that comes back as ErrStale: the next step sees them in the cache.
func (c *Controller) claim(ctx context.Context, key types.NamespacedName, job *batchv1.Job, selector labels.Selector, now time.Time) ([]*corev1.Pod, error) {
	owned := c.deletions.Overlay(key, c.pods.Of(job.UID), now)
	claimant := reconcile.Claimant{
		Object:     job,
		Kind:       gvk,
		Selector:   selector,
		Finalizers: []string{batchv1.JobTrackingFinalizer},
		Live: func(ctx context.Context) (metav1.Object, error) {
			return c.client.BatchV1().Jobs(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
		},
	}
	var changed error
	pods, err := reconcile.Claim(ctx, claimant, append(owned, c.pods.Orphans(job.Namespace)...), func(ctx context.Context, pod *corev1.Pod, data []byte) error {
		changed = reconcile.ErrStale
		return c.writer.Patch(key)(ctx, pod, data)
	})
	return pods, errors.Join(err, changed)
}

// --- Effects ---

// carryOut changes pods, then reports what came of it.
func (c *Controller) carryOut(ctx context.Context, key types.NamespacedName, job *batchv1.Job, plan plan) error {
	out, failure := c.changePods(ctx, key, job, plan)
	failed := failure != nil || out.created < len(plan.Create)
	if err := c.report(ctx, key, job, settle(plan, out, time.Now()), failed); err != nil {
		return errors.Join(failure, err)
	}
	if plan.Again > 0 {
		c.AddAfter(key, plan.Again)
	}
	return failure
}

// report stores the status and releases the pods that it takes in. The first
// one may share a write with what comes next; new numbers alone wait until
// statusPeriod after the last ones.
func (c *Controller) report(ctx context.Context, key types.NamespacedName, job *batchv1.Job, s settlement, failed bool) error {
	known, now := c.memories.of(key, job.UID), time.Now()
	isStored, news := !differs(job.Status, s.Status), reconcile.Urgent
	switch {
	case isStored:
		news = reconcile.NoNews
	case s.Urgent:
	case isNew(job):
		news = reconcile.Counts.After(failed)
		known.start = s.Status.StartTime
		c.memories.keep(key, known)
	default:
		if wait := known.reported.Add(statusPeriod).Sub(now); wait > 0 {
			c.AddAfter(key, wait)
			return nil
		}
	}
	err := c.statuses.Write(key, news, func() (metav1.Object, error) {
		updated := *job
		updated.Status = s.Status
		written, err := c.client.BatchV1().Jobs(job.Namespace).UpdateStatus(ctx, &updated, metav1.UpdateOptions{})
		if err != nil {
			return nil, err
		}
		isStored = true
		known.reported = now
		c.memories.keep(key, known)
		c.tell(job, s.Status)
		return written, nil
	})
	if err != nil || !isStored {
		return err
	}
	return c.release(ctx, key, s.Release)
}

// release takes the finalizer off pods.
func (c *Controller) release(ctx context.Context, key types.NamespacedName, pods []*corev1.Pod) error {
	return reconcile.Parallel(ctx, len(pods), func(ctx context.Context, i int) error {
		if !isTracked(pods[i]) {
			return nil
		}
		err := c.writer.Patch(key)(ctx, pods[i], releasePatch(pods[i], ""))
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone, and perhaps replaced
			return nil
		}
		return err
	})
}
