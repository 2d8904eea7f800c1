package job

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

func TestJobRunsToCompletion(t *testing.T) {
	inWorld(t, succeeds, func(t *testing.T, w *world) {
		w.create(jobOf(3, 2))
		w.Pass(2 * time.Second)
		w.expect("active=2 ready=2")
		w.Pass(5 * time.Second)
		w.expect("active=1 ready=1 succeeded=2")
		w.Pass(10 * time.Second)
		w.expect("succeeded=3 SuccessCriteriaMet Complete")
		job := w.get()
		if took := job.Status.CompletionTime.Sub(job.Status.StartTime.Time); took != 10*time.Second {
			t.Errorf("took %s, want 10s", took)
		}
		for _, p := range w.pods() {
			if isTracked(&p) {
				t.Errorf("%s still has its finalizer", p.Name)
			}
		}
		if got := w.reasons(); !slices.Equal(got, []string{"SuccessfulCreate", "Completed"}) {
			t.Errorf("events %v", got)
		}
		before := w.Writes("jobs/status") + w.Writes("pods")
		w.Pass(time.Hour)
		if n := w.Writes("jobs/status") + w.Writes("pods") - before; n != 0 {
			t.Errorf("%d writes while nothing happened", n)
		}
	})
}

func TestFailedPodsAreReplacedEachTimeLater(t *testing.T) {
	inWorld(t, fails, func(t *testing.T, w *world) {
		w.create(jobOf(1, 1, limit(2)))
		var starts []time.Duration
		begin := time.Now()
		for range 120 {
			if w.Pass(time.Second); len(w.made.list()) > len(starts) {
				starts = append(starts, time.Since(begin).Truncate(time.Second))
			}
		}
		// 5 s run, 10 s wait, 5 s run, 20 s wait
		if want := []time.Duration{time.Second, 15 * time.Second, 40 * time.Second}; !slices.Equal(starts, want) {
			t.Errorf("started after %v, want %v", starts, want)
		}
		w.expect("failed=3 FailureTarget Failed")
		if got := w.reasons(); !slices.Equal(got, []string{"SuccessfulCreate", "BackoffLimitExceeded"}) {
			t.Errorf("events %v", got)
		}
	})
}

func TestSuspendedJobStopsAndBeginsAnew(t *testing.T) {
	inWorld(t, forever, func(t *testing.T, w *world) {
		w.create(jobOf(2, 2, deadline(60)))
		w.Pass(30 * time.Second)
		w.expect("active=2 ready=2")
		w.edit(suspended)
		w.Pass(time.Second)
		w.expect("terminating=2 Suspended")
		w.Pass(time.Hour)
		w.expect("Suspended")
		if at := w.get().Status.StartTime; at != nil {
			t.Errorf("suspended, but started at %v", at)
		}
		w.edit(func(job *batchv1.Job) { job.Spec.Suspend = nil })
		w.Pass(59 * time.Second)
		w.expect("active=2 ready=2")
		w.Pass(time.Second)
		w.expect("terminating=2 uncounted=2 FailureTarget")
		w.Pass(10 * time.Second)
		w.expect("failed=2 FailureTarget Failed")
		if got, want := w.reasons(), []string{"SuccessfulCreate", "SuccessfulDelete", "Suspended", "Resumed", "DeadlineExceeded"}; !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	})
}

func TestIndexedPodsKnowTheirIndex(t *testing.T) {
	inWorld(t, forever, func(t *testing.T, w *world) {
		job := jobOf(2, 2, limitPerIndex(1))
		job.Spec.Template.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "i", Env: []corev1.EnvVar{{Name: indexVariable, Value: "mine"}}}}
		w.create(job)
		w.Pass(time.Second)
		var seen []string
		for _, p := range w.pods() {
			index := p.Annotations[batchv1.JobCompletionIndexAnnotation]
			seen = append(seen, index)
			if !strings.HasPrefix(p.Name, "work-"+index+"-") || p.Spec.Hostname != "work-"+index || p.Labels[batchv1.JobCompletionIndexAnnotation] != index {
				t.Errorf("index %s: name %s, hostname %s, labels %v", index, p.Name, p.Spec.Hostname, p.Labels)
			}
			if n := p.Annotations[batchv1.JobIndexFailureCountAnnotation]; n != "0" {
				t.Errorf("index %s: %q failures", index, n)
			}
			if env := p.Spec.Containers[0].Env; len(env) != 1 || env[0].ValueFrom.FieldRef.FieldPath != "metadata.labels['batch.kubernetes.io/job-completion-index']" {
				t.Errorf("index %s: environment %v", index, env)
			}
			if env := p.Spec.InitContainers[0].Env; len(env) != 1 || env[0].Value != "mine" {
				t.Errorf("index %s: the init container's own variable became %v", index, env)
			}
		}
		if slices.Sort(seen); !slices.Equal(seen, []string{"0", "1"}) {
			t.Errorf("indexes %v", seen)
		}
	})
}

func TestLongJobNamesLeaveRoomForTheIndex(t *testing.T) {
	job := jobOf(100, 1, indexed)
	job.Name = strings.Repeat("x", 63)
	if got := podOf(job, newPod{index: 42}).GenerateName; got != strings.Repeat("x", 54)+"-42-" {
		t.Errorf("%q", got)
	}
}

func TestElasticJobGrowsAndShrinks(t *testing.T) {
	onlyOdd := func(pod *corev1.Pod) (int32, time.Duration) {
		if indexOf(pod)%2 == 0 {
			return forever(pod)
		}
		return succeeds(pod)
	}
	inWorld(t, onlyOdd, func(t *testing.T, w *world) {
		scale := func(n int32) {
			w.edit(func(job *batchv1.Job) { job.Spec.Completions, job.Spec.Parallelism = &n, &n })
			w.Pass(10 * time.Second)
		}
		w.create(jobOf(4, 4, indexed))
		w.Pass(10 * time.Second)
		w.expect("active=2 ready=2 succeeded=2 completed:1,3")
		scale(6)
		w.expect("active=3 ready=3 succeeded=3 completed:1,3,5")
		scale(3)
		w.expect("active=2 ready=2 succeeded=1 completed:1")
		scale(0)
		w.expect("SuccessCriteriaMet Complete")
	})
}

func TestEachIndexHasItsOwnLimit(t *testing.T) {
	onlyOne := func(pod *corev1.Pod) (int32, time.Duration) {
		if indexOf(pod) == 1 {
			return succeeds(pod)
		}
		return fails(pod)
	}
	inWorld(t, onlyOne, func(t *testing.T, w *world) {
		w.create(jobOf(3, 3, limitPerIndex(1)))
		w.Pass(time.Minute)
		w.expect("succeeded=1 failed=4 completed:1 failed:0,2 FailureTarget Failed")
		var counts []string
		for _, p := range w.pods() {
			counts = append(counts, p.Annotations[batchv1.JobCompletionIndexAnnotation]+":"+p.Annotations[batchv1.JobIndexFailureCountAnnotation])
		}
		if slices.Sort(counts); !slices.Equal(counts, []string{"0:0", "0:1", "1:0", "2:0", "2:1"}) {
			t.Errorf("failures before each pod: %v", counts)
		}
	})
}

func TestPodThatSucceedsUnseenIsNotCutShort(t *testing.T) {
	inWorld(t, forever, func(t *testing.T, w *world) {
		w.create(jobOf(3, 2, limit(0)))
		w.Pass(10 * time.Second)
		pods := w.pods()
		w.Lag(func() time.Duration { return time.Second })
		w.end(&pods[0], 1)
		w.end(&pods[1], 0) // seen a second after the failure that ends the Job
		w.Pass(time.Minute)
		w.expect("succeeded=1 failed=1 FailureTarget Failed")
	})
}

func TestPodsAreAskedToEndOnce(t *testing.T) {
	inWorld(t, forever, func(t *testing.T, w *world) {
		w.create(jobOf(5, 5))
		w.Pass(10 * time.Second)
		w.Lag(func() time.Duration { return 400 * time.Millisecond })
		asked := 0
		w.Refuse(func(action kubetesting.Action) error {
			if deletion, ok := action.(kubetesting.DeleteActionImpl); ok && deletion.DeleteOptions.Preconditions != nil {
				asked++
			}
			return nil
		})
		w.edit(func(job *batchv1.Job) { *job.Spec.Parallelism = 1 })
		w.Pass(time.Minute)
		w.expect("active=1 ready=1")
		if asked != 4 {
			t.Errorf("4 pods were asked %d times", asked)
		}
	})
}

func TestJobOfAnotherControllerIsLeftAlone(t *testing.T) {
	inWorld(t, succeeds, func(t *testing.T, w *world) {
		w.create(jobOf(1, 1, func(job *batchv1.Job) { job.Spec.ManagedBy = new("example.com/other") }))
		w.Pass(time.Minute)
		if n := len(w.pods()); n != 0 || w.get().Status.StartTime != nil {
			t.Errorf("%d pods, status %+v", n, w.get().Status)
		}
	})
}

func TestPodsOfALostJobAreFreed(t *testing.T) {
	inWorld(t, forever, func(t *testing.T, w *world) {
		w.create(jobOf(3, 3))
		w.Pass(10 * time.Second)
		if err := w.Client.BatchV1().Jobs("ns").Delete(t.Context(), "work", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.Pass(10 * time.Second)
		for _, p := range w.pods() {
			if isTracked(&p) {
				t.Errorf("%s is held for ever", p.Name)
			}
		}
	})
}

// add makes a pod that no Job created.
func (w *world) add(pod *corev1.Pod, owner *metav1.OwnerReference) {
	w.t.Helper()
	pod.UID, pod.Status, pod.Spec = "", corev1.PodStatus{}, corev1.PodSpec{}
	if owner != nil {
		pod.OwnerReferences = []metav1.OwnerReference{*owner}
	}
	testcluster.Must[*corev1.Pod](w.t)(w.Client.CoreV1().Pods("ns").Create(w.t.Context(), pod, metav1.CreateOptions{}))
}

func (w *world) pod(name string) *corev1.Pod {
	w.t.Helper()
	return testcluster.Must[*corev1.Pod](w.t)(w.Client.CoreV1().Pods("ns").Get(w.t.Context(), name, metav1.GetOptions{}))
}

func TestOnlyPodsThatNoJobCountsAreFreed(t *testing.T) {
	inWorld(t, forever, func(t *testing.T, w *world) {
		controlledBy := func(apiVersion, name string) *metav1.OwnerReference {
			return &metav1.OwnerReference{APIVersion: apiVersion, Kind: "Job", Name: name, UID: types.UID(apiVersion), Controller: new(true)}
		}
		elsewhere := func(p *corev1.Pod) { p.Labels = nil }
		w.add(pod("cut-off", elsewhere), nil)
		w.add(pod("of-a-lost-job", elsewhere), controlledBy("batch/v1", "lost"))
		w.add(pod("of-another-kind-of-job", elsewhere), controlledBy("example.com/v1", "lost"))
		w.Pass(10 * time.Second)
		for name, want := range map[string]bool{"cut-off": false, "of-a-lost-job": false, "of-another-kind-of-job": true} {
			if got := isTracked(w.pod(name)); got != want {
				t.Errorf("%s is held: %v", name, got)
			}
		}
	})
}

func TestOrphanIsAdoptedCountedAndReleasedWithItsLabels(t *testing.T) {
	inWorld(t, forever, func(t *testing.T, w *world) {
		w.add(pod("orphan", untracked), nil)
		w.Pass(time.Second)
		w.create(jobOf(1, 1))
		w.Pass(10 * time.Second)
		w.expect("active=1 ready=1")
		orphan := w.pod("orphan")
		if !metav1.IsControlledBy(orphan, w.get()) || !isTracked(orphan) {
			t.Fatalf("not adopted: owners %v, finalizers %v", orphan.OwnerReferences, orphan.Finalizers)
		}
		orphan.Labels = nil
		testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Update(t.Context(), orphan, metav1.UpdateOptions{}))
		w.Pass(10 * time.Second)
		if orphan = w.pod("orphan"); len(orphan.OwnerReferences) != 0 || isTracked(orphan) {
			t.Errorf("not released: owners %v, finalizers %v", orphan.OwnerReferences, orphan.Finalizers)
		}
		w.expect("active=1 ready=1")
		if n := len(w.pods()); n != 2 {
			t.Errorf("%d pods, want the orphan and its replacement", n)
		}
	})
}

func TestQuotaStopsTheFirstBatch(t *testing.T) {
	inWorld(t, succeeds, func(t *testing.T, w *world) {
		attempts := 0
		w.Refuse(func(a kubetesting.Action) error {
			if !a.Matches("create", "pods") {
				return nil
			}
			attempts++
			return apierrors.NewForbidden(corev1.Resource("pods"), "", fmt.Errorf("exceeded quota: q"))
		})
		w.create(jobOf(15, 15))
		w.Pass(time.Millisecond)
		if attempts > 2 { // the second follows from the status being written
			t.Errorf("%d attempts at once, want at most 2", attempts)
		}
		w.Refuse(nil)
		w.Pass(10 * time.Minute)
		w.expect("succeeded=15 SuccessCriteriaMet Complete")
		if got := w.reasons(); !slices.Equal(got, []string{"FailedCreate", "SuccessfulCreate", "Completed"}) {
			t.Errorf("events %v", got)
		}
	})
}

func TestNamespaceThatTerminatesGetsNoPods(t *testing.T) {
	inWorld(t, succeeds, func(t *testing.T, w *world) {
		attempts := 0
		w.Refuse(func(a kubetesting.Action) error {
			if !a.Matches("create", "pods") {
				return nil
			}
			attempts++
			err := apierrors.NewForbidden(corev1.Resource("pods"), "", fmt.Errorf("namespace is being terminated"))
			err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
			return err
		})
		w.create(jobOf(3, 3))
		w.Pass(time.Hour)
		if got := w.reasons(); attempts > 2 || len(got) != 0 {
			t.Errorf("%d attempts, events %v", attempts, got)
		}
	})
}

func TestNewNumbersAreWrittenTogether(t *testing.T) {
	inWorld(t, func(*corev1.Pod) (int32, time.Duration) { return 0, 100 * time.Millisecond }, func(t *testing.T, w *world) {
		w.create(jobOf(200, 10))
		w.Pass(20 * time.Second)
		w.expect("succeeded=200 SuccessCriteriaMet Complete")
		if n := w.Writes("jobs/status"); n > 8 {
			t.Errorf("%d status writes in 2 s", n)
		}
	})
}

func TestTheFirstStatusOfAShortJobIsSpared(t *testing.T) {
	inWorld(t, func(*corev1.Pod) (int32, time.Duration) { return 0, 10 * time.Millisecond }, func(t *testing.T, w *world) {
		w.create(jobOf(1, 1))
		w.Pass(time.Minute)
		w.expect("succeeded=1 SuccessCriteriaMet Complete")
		if n := w.Writes("jobs/status"); n != 2 {
			t.Errorf("%d status writes, want one that takes the pod in and one that counts it", n)
		}
	})
	inWorld(t, succeeds, func(t *testing.T, w *world) {
		begin := time.Now()
		w.create(jobOf(1, 1))
		w.Pass(2 * time.Second)
		w.expect("active=1 ready=1")
		if at := w.get().Status.StartTime; at == nil || !at.Time.Equal(begin) {
			t.Errorf("started at %v, want %v, when its pod was made", at, begin)
		}
	})
}
