// Package cronjob starts Jobs on a schedule.
//
//	       base                                     now
//	────────┼─────────┼─────────┼─────────┼──────────┼────────► time
//	   last start   missed    missed    due       the next is the wake-up
//
// Of the runs since the last start only the latest is started, unless its
// deadline has passed or the concurrency policy forbids it. A run's Job has a
// name that follows from the run's time, so however often a start is repeated,
// after a crash or from a stale cache, there is one Job.
//
// A run is a moment at which a clock on a wall in the CronJob's time zone shows
// the scheduled time: none if that is left out in spring, two if it is repeated
// in autumn. If the machine's clock is set back, nothing runs until it has
// reached the last start again; if it is set forward, what lies between was missed.
package cronjob

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	batchlisters "k8s.io/client-go/listers/batch/v1"

	"weft.dev/weft/controlplane/reconcile"
)

var (
	kind    = batchv1.SchemeGroupVersion.WithKind("CronJob")
	jobKind = batchv1.SchemeGroupVersion.WithKind("Job")
)

// Controller starts the Jobs of CronJobs.
type Controller struct {
	*reconcile.Loop
	client   kubernetes.Interface
	events   *reconcile.Events
	cronJobs batchlisters.CronJobLister
	store    reconcile.Store
	jobs     reconcile.ByController[*batchv1.Job]
	jobStore reconcile.Store
	fence    reconcile.Fence

	mu       sync.Mutex
	memories map[types.NamespacedName]memory
}

// memory is what the API has no place for. To lose it costs an early start or
// a repeated event.
type memory struct {
	// rescheduled is when the schedule was seen to change.
	rescheduled time.Time
	// told are the notices of the latest step.
	told map[notice]struct{}
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	cronJobs := env.Informers.Batch().V1().CronJobs()
	jobInformer := env.Informers.Batch().V1().Jobs().Informer()
	jobs, err := reconcile.NewByController[*batchv1.Job](jobInformer)
	if err != nil {
		return nil, err
	}
	c := &Controller{
		client:   env.Client,
		events:   env.NewEvents(),
		cronJobs: cronJobs.Lister(),
		store:    cronJobs.Informer().GetStore(),
		jobs:     jobs,
		jobStore: jobInformer.GetStore(),
		memories: map[types.NamespacedName]memory{},
	}
	c.Loop = env.NewLoop(reconcile.Config{Reconcile: c.Reconcile, Events: c.events})
	return c, errors.Join(
		c.Watch(cronJobs.Informer(), c.cronJobChanged),
		c.WatchOwned(jobInformer, kind.Kind, func(metav1.Object) []types.NamespacedName { return nil }),
	)
}

// cronJobChanged remembers when a schedule was edited: what the new one would
// have meant before that was not missed.
func (c *Controller) cronJobChanged(change reconcile.Change) {
	before, _ := change.Before.(*batchv1.CronJob)
	after, _ := change.After.(*batchv1.CronJob)
	switch {
	case after == nil:
		c.Add(reconcile.KeyOf(before))
		return
	case before != nil && (before.Spec.Schedule != after.Spec.Schedule || zoneName(before) != zoneName(after)):
		c.remember(reconcile.KeyOf(after), func(m *memory) { m.rescheduled = time.Now() })
	}
	c.Add(reconcile.KeyOf(after))
}

func (c *Controller) remember(key types.NamespacedName, edit func(*memory)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.memories[key]
	edit(&m)
	c.memories[key] = m
}

func (c *Controller) recall(key types.NamespacedName) memory {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.memories[key]
}

// --- Reconcile ---

// Reconcile starts the CronJob's Job if a run is due, and brings its status
// and history up to date. It is safe to repeat.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	if err := c.fence.Check(key); err != nil {
		return err
	}
	cj, err := c.cronJobs.CronJobs(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		c.forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	jobs, err := c.children(ctx, cj)
	if err != nil {
		return err
	}
	plan := decide(cj, jobs, c.recall(key).rescheduled, time.Now())
	return c.carryOut(ctx, key, cj, plan)
}

func (c *Controller) forget(key types.NamespacedName) {
	c.fence.Forget(key)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.memories, key)
}

// children returns the Jobs that cj controls. One that its status calls active
// but the cache does not know is looked for in the API server: a cache that
// lags behind another server's writes must not end Forbid.
func (c *Controller) children(ctx context.Context, cj *batchv1.CronJob) ([]*batchv1.Job, error) {
	jobs := c.jobs.Of(cj.UID)
	cached := map[types.UID]bool{}
	for _, job := range jobs {
		cached[job.UID] = true
	}
	for _, ref := range cj.Status.Active {
		if cached[ref.UID] {
			continue
		}
		job, err := c.client.BatchV1().Jobs(cj.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, fmt.Errorf("look for active job %s: %w", ref.Name, err)
		case job.UID == ref.UID && metav1.IsControlledBy(job, cj):
			jobs = append(jobs, job)
		}
	}
	return jobs, nil
}

// --- Effects ---

// carryOut deletes, starts and reports. Nothing is started unless all that it
// replaces is deleted.
func (c *Controller) carryOut(ctx context.Context, key types.NamespacedName, cj *batchv1.CronJob, plan plan) error {
	c.tell(key, cj, plan.Notices)
	status := plan.Status
	if plan.recordsFirst(cj.Status) {
		return c.updateStatus(ctx, key, cj, status) // which leads to the next step
	}
	failure := c.delete(ctx, cj, plan.Delete)
	replaceFailure := c.delete(ctx, cj, plan.Replace)
	if replaceFailure == nil {
		status = withReplaced(status, plan.Replace)
	}
	if plan.Start != nil && replaceFailure == nil {
		job, err := c.start(ctx, key, cj, plan.Start)
		if job != nil {
			status = withStarted(status, job, plan.Run)
		}
		failure = errors.Join(failure, err)
	}
	failure = errors.Join(failure, replaceFailure, c.updateStatus(ctx, key, cj, status))
	if plan.Again > 0 {
		c.AddAfter(key, plan.Again)
	}
	return failure
}

// tell reports the notices that did not hold in the step before.
func (c *Controller) tell(key types.NamespacedName, cj *batchv1.CronJob, notices []notice) {
	current := map[notice]struct{}{}
	for _, n := range notices {
		current[n] = struct{}{}
	}
	told := c.recall(key).told
	c.remember(key, func(m *memory) { m.told = current })
	for _, n := range notices {
		if _, known := told[n]; known {
			continue
		}
		if n.Type == corev1.EventTypeWarning {
			c.events.Warning(cj, n.Reason, "%s", n.Message)
		} else {
			c.events.Normal(cj, n.Reason, "%s", n.Message)
		}
	}
}

// start creates the Job, or finds that it exists already. It returns nil for
// a Job of that name that belongs to somebody else.
func (c *Controller) start(ctx context.Context, key types.NamespacedName, cj *batchv1.CronJob, job *batchv1.Job) (*batchv1.Job, error) {
	api := c.client.BatchV1().Jobs(cj.Namespace)
	created, err := api.Create(ctx, job, metav1.CreateOptions{})
	switch {
	case err == nil:
		c.fence.Wrote(key, c.jobStore, created.ResourceVersion)
		c.events.Normal(cj, "SuccessfulCreate", "Created job %v", created.Name)
		return created, nil
	case reconcile.IsNamespaceTerminating(err):
		return nil, nil
	case !apierrors.IsAlreadyExists(err):
		c.events.Warning(cj, "FailedCreate", "Error creating job: %v", err)
		return nil, fmt.Errorf("create job %s: %w", job.Name, err)
	}
	existing, err := api.Get(ctx, job.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("look at existing job %s: %w", job.Name, err)
	}
	if !metav1.IsControlledBy(existing, cj) {
		c.events.Warning(cj, "FailedCreate", "Error creating job: %s exists and is not controlled by this CronJob", job.Name)
		return nil, nil
	}
	return existing, nil
}

// delete deletes Jobs together with their pods.
func (c *Controller) delete(ctx context.Context, cj *batchv1.CronJob, jobs []*batchv1.Job) error {
	return reconcile.Parallel(ctx, len(jobs), func(ctx context.Context, i int) error {
		job := jobs[i]
		options := metav1.NewPreconditionDeleteOptions(string(job.UID))
		options.PropagationPolicy = new(metav1.DeletePropagationBackground)
		err := c.client.BatchV1().Jobs(job.Namespace).Delete(ctx, job.Name, *options)
		switch {
		case err == nil:
			c.events.Normal(cj, "SuccessfulDelete", "Deleted job %v", job.Name)
		case apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone, and perhaps replaced
		default:
			c.events.Warning(cj, "FailedDelete", "Deleted job: %v", err)
			return fmt.Errorf("delete job %s: %w", job.Name, err)
		}
		return nil
	})
}

func (c *Controller) updateStatus(ctx context.Context, key types.NamespacedName, cj *batchv1.CronJob, status batchv1.CronJobStatus) error {
	if equality.Semantic.DeepEqual(cj.Status, status) {
		return nil
	}
	updated := cj.DeepCopy()
	updated.Status = status
	updated, err := c.client.BatchV1().CronJobs(cj.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("update status: %w", err)
	}
	c.fence.Wrote(key, c.store, updated.ResourceVersion)
	return nil
}
