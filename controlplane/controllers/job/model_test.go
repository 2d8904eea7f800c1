package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/reconcile"
)

// ignoredCode is the exit code that the policy of some random Jobs ignores.
const ignoredCode = 42

// chaos is a world whose API server fails now and then, and whose controller
// is killed now and then, in the middle of what it does.
type chaos struct {
	*world
	mu     sync.Mutex
	random *rand.Rand
	// trouble is how many of a hundred writes go wrong.
	trouble int
	// dead says that the controller has been killed: nothing that it still does has an effect.
	dead bool
	stop func()
	// discarded pods lost their finalizer while nothing had ended them.
	discarded sets.Set[types.UID]
	// parallelism is the most that the Job ever asked for.
	parallelism int32
	faults      []string
}

// TestCountsAreExactWhateverHappens runs random Jobs through random trouble.
// Each pod that ran is counted once, whether the controller was killed before or after any of
// its writes, and no status is ever refused.
func TestCountsAreExactWhateverHappens(t *testing.T) {
	histories := 300
	if testing.Short() {
		histories = 50
	}
	for seed := range histories {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newChaos(t, uint64(seed)).history() })
		})
	}
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{random: rand.New(rand.NewPCG(seed, 0)), discarded: sets.New[types.UID]()}
	c.trouble = c.dice(4) * 10
	good := c.dice(101)
	c.world = newWorld(t, func(*corev1.Pod) (int32, time.Duration) {
		after := time.Duration(c.dice(20_000)) * time.Millisecond
		switch {
		case c.dice(100) < good:
			return 0, after
		case c.dice(3) == 0:
			return ignoredCode, after
		}
		return 1, after
	})
	c.Refuse(c.refuse)
	c.Lose(c.lose)
	if lag := c.dice(4); lag > 0 {
		c.Lag(func() time.Duration { return time.Duration(c.dice(lag*100)) * time.Millisecond })
	}
	c.start()
	c.Run() // the informers
	return c
}

// dice returns a number from 0 to n-1.
func (c *chaos) dice(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.random.IntN(n)
}

// history is one Job from its creation until nothing is left of it.
func (c *chaos) history() {
	c.create(c.randomJob())
	for range 60 {
		c.meddle()
		c.Pass(time.Duration(c.dice(5000)) * time.Millisecond)
		c.revive()
	}
	c.parallelism = max(c.parallelism, 2)
	c.edit(func(job *batchv1.Job) { job.Spec.Suspend, job.Spec.Parallelism = nil, new(int32(2)) })
	for range 1000 {
		if isOver(c.get()) {
			break
		}
		c.Pass(time.Minute)
		c.revive()
	}
	c.trouble = 0
	c.Pass(10 * time.Minute)
	c.revive()
	c.Pass(10 * time.Minute)
	if job := c.get(); isOver(job) {
		c.checkCounts(job)
	} else {
		c.t.Errorf("the Job does not end: %s", describe(job.Status))
	}
	if err := c.Client.BatchV1().Jobs("ns").Delete(c.t.Context(), "work", metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
	c.Pass(10 * time.Minute)
	for _, p := range c.pods() {
		if isTracked(&p) {
			c.t.Errorf("%s is held for ever", p.Name)
		}
	}
	for _, fault := range c.faults {
		c.t.Error(fault)
	}
	c.stop()
}

func (c *chaos) randomJob() *batchv1.Job {
	job := jobOf(int32(1+c.dice(12)), int32(1+c.dice(6)), limit(int32(c.dice(30))))
	switch c.dice(4) {
	case 0:
		indexed(job)
	case 1:
		limitPerIndex(int32(c.dice(4)))(job)
	case 2:
		workQueue(job)
	}
	if c.dice(3) == 0 {
		onlyFailedReplaced(job)
	}
	if c.dice(3) == 0 {
		onFailure(exitCodes(batchv1.PodFailurePolicyActionIgnore, ignoredCode))(job)
		onlyFailedReplaced(job)
	}
	if c.dice(5) == 0 {
		deadline(int64(10 + c.dice(300)))(job)
	}
	c.parallelism = *job.Spec.Parallelism
	return job
}

// meddle is what users and nodes do to a Job that runs.
func (c *chaos) meddle() {
	switch c.dice(30) {
	case 0:
		c.edit(func(job *batchv1.Job) { job.Spec.Suspend = new(!isSuspended(job)) })
	case 1:
		c.edit(func(job *batchv1.Job) {
			*job.Spec.Parallelism = int32(c.dice(8))
			c.parallelism = max(c.parallelism, *job.Spec.Parallelism)
		})
	case 2:
		for _, p := range c.pods() {
			_ = c.Client.CoreV1().Pods("ns").Delete(c.t.Context(), p.Name, metav1.DeleteOptions{})
			break
		}
	}
}

// start runs a new controller, which knows nothing.
func (c *chaos) start() {
	env := c.Env("job-controller")
	env.Log = slog.New(slog.DiscardHandler)
	controller, err := New(env)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = controller.Run(ctx)
	}()
	c.stop = func() {
		cancel()
		<-done
	}
}

// revive starts another controller if the last was killed. It waits until the
// caches are up to date, because a new process fills its own from the API server.
func (c *chaos) revive() {
	c.mu.Lock()
	isDead := c.dead
	c.mu.Unlock()
	if isDead {
		c.stop()
		c.mu.Lock()
		c.dead = false
		c.mu.Unlock()
		c.Pass(time.Minute)
		c.start()
	}
}

// refuse looks at each write before it happens.
func (c *chaos) refuse(action kubetesting.Action) error {
	if !byController(action) {
		return nil
	}
	goesWrong, kills := c.dice(100) < c.trouble, c.dice(5) == 0
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || goesWrong {
		c.dead = c.dead || kills
		return errors.New("the API server is not reachable")
	}
	c.inspect(action)
	return nil
}

// lose looks at each write after it happened. That an answer to a creation is
// lost makes the controller create another pod, which is not what is tested.
func (c *chaos) lose(action kubetesting.Action) bool {
	if !byController(action) || action.GetVerb() == "create" || c.dice(100) >= c.trouble {
		return false
	}
	kills := c.dice(5) == 0
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = c.dead || kills
	return true
}

// byController tells the controller's writes from those of nodes and users.
func byController(action kubetesting.Action) bool {
	switch action := action.(type) {
	case kubetesting.DeleteActionImpl:
		return action.DeleteOptions.Preconditions != nil
	case kubetesting.UpdateActionImpl:
		return action.Matches("update", "jobs/status")
	case kubetesting.PatchActionImpl:
		return true
	}
	return action.Matches("create", "pods")
}

// inspect checks a write that is about to happen.
func (c *chaos) inspect(action kubetesting.Action) {
	fault := func(format string, args ...any) { c.faults = append(c.faults, fmt.Sprintf(format, args...)) }
	get := func(name string) any {
		object, _ := c.Client.Tracker().Get(action.GetResource(), "ns", name)
		return object
	}
	switch action := action.(type) {
	case kubetesting.UpdateActionImpl:
		updated := action.GetObject().(*batchv1.Job)
		if job, ok := get(updated.Name).(*batchv1.Job); ok && job.ResourceVersion == updated.ResourceVersion {
			if faults := validate(job, updated.Status); len(faults) > 0 {
				fault("status %q after %q: %s", describe(updated.Status), describe(job.Status), strings.Join(faults, ", "))
			}
		}
	case kubetesting.PatchActionImpl:
		pod, ok := get(action.Name).(*corev1.Pod)
		job, _ := c.Client.Tracker().Get(batchv1.SchemeGroupVersion.WithResource("jobs"), "ns", "work")
		if ok && job != nil && mayDiscard(job.(*batchv1.Job), pod, string(action.Patch)) {
			c.discarded.Insert(pod.UID)
		}
	case kubetesting.CreateActionImpl:
		created := action.GetObject().(*corev1.Pod)
		list, err := c.Client.Tracker().List(action.GetResource(), corev1.SchemeGroupVersion.WithKind("Pod"), "ns")
		if err != nil {
			fault("%v", err)
			return
		}
		active := int32(0)
		for _, p := range list.(*corev1.PodList).Items {
			if !reconcile.IsActive(&p) {
				continue
			}
			if active++; indexOf(&p) != noIndex && indexOf(&p) == indexOf(created) {
				fault("a second pod of index %d", indexOf(created))
			}
		}
		if active >= c.parallelism {
			fault("one more than %d active pods", active)
		}
	}
}

// mayDiscard reports whether a pod that loses its finalizer is rightly not
// counted: it is taken away as it is, or the Job has succeeded and does not
// wait to see whether a pod that was asked to end fails.
func mayDiscard(job *batchv1.Job, pod *corev1.Pod, patch string) bool {
	switch {
	case isOver(job) || reconcile.IsFinished(pod):
		return false
	case pod.DeletionTimestamp == nil:
		return strings.Contains(patch, fmt.Sprintf(`"resourceVersion":%q`, pod.ResourceVersion)) // else it is refused
	}
	return replacesOnlyFailed(job) && isTrue(job.Status.Conditions, batchv1.JobSuccessCriteriaMet)
}

// checkCounts compares a finished Job with what became of its pods.
func (c *chaos) checkCounts(job *batchv1.Job) {
	succeeded, failed := 0, 0
	done := map[int]bool{}
	made := c.made.list()
	for _, pod := range made {
		switch {
		case c.discarded.Has(pod.UID):
		case pod.Status.Phase == corev1.PodSucceeded:
			succeeded++
			done[indexOf(pod)] = true
		case judge(job.Spec.PodFailurePolicy, pod).action != batchv1.PodFailurePolicyActionIgnore:
			failed++
		}
	}
	if isIndexed(job) {
		succeeded = len(done)
		if want := indexSet(slices.Collect(maps.Keys(done))...).String(); job.Status.CompletedIndexes != want {
			c.t.Errorf("completed indexes %q, want %q", job.Status.CompletedIndexes, want)
		}
	}
	if int(job.Status.Succeeded) != succeeded || int(job.Status.Failed) != failed {
		c.t.Errorf("%d pods succeeded and %d failed of %d, %d of them discarded, but the status says: %s",
			succeeded, failed, len(made), c.discarded.Len(), describe(job.Status))
	}
	if isTrue(job.Status.Conditions, batchv1.JobComplete) && job.Spec.Completions != nil && succeeded < int(*job.Spec.Completions) {
		c.t.Errorf("complete with %d of %d", succeeded, *job.Spec.Completions)
	}
}
