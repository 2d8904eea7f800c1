package job

import (
	"fmt"
	"maps"
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
	kubetesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

// world is a cluster that runs the controller. Its nodes have every pod ready
// at once, and end it as script says.
type world struct {
	*testcluster.Cluster
	t *testing.T
	// script returns the exit code of a pod and when it comes; never, if
	// negative. It may be called by many goroutines.
	script func(pod *corev1.Pod) (code int32, after time.Duration)
	// grace is how long a pod that is asked to end goes on.
	grace time.Duration
	made  history
}

// history has every pod that was ever created, in its latest state.
type history struct {
	mu   sync.Mutex
	pods map[types.UID]*corev1.Pod
}

func (h *history) add(pod *corev1.Pod) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pods == nil {
		h.pods = map[types.UID]*corev1.Pod{}
	}
	h.pods[pod.UID] = pod
}

func (h *history) list() []*corev1.Pod {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Values(h.pods))
}

func forever(*corev1.Pod) (int32, time.Duration) { return 0, -1 }

func succeeds(*corev1.Pod) (int32, time.Duration) { return 0, 5 * time.Second }

func fails(*corev1.Pod) (int32, time.Duration) { return 1, 5 * time.Second }

func newWorld(t *testing.T, script func(*corev1.Pod) (int32, time.Duration)) *world {
	w := &world{Cluster: testcluster.New(t), t: t, script: script, grace: 3 * time.Second}
	_, err := w.Informers.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			pod := obj.(*corev1.Pod)
			w.made.add(pod)
			go w.run(pod)
		},
		UpdateFunc: func(before, after any) {
			pod := after.(*corev1.Pod)
			w.made.add(pod)
			if before.(*corev1.Pod).DeletionTimestamp == nil && pod.DeletionTimestamp != nil {
				go w.stop(pod)
			}
		},
		DeleteFunc: func(obj any) {
			if pod, ok := obj.(*corev1.Pod); ok {
				w.made.add(pod)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// inWorld runs test while the controller runs.
func inWorld(t *testing.T, script func(*corev1.Pod) (int32, time.Duration), test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, script)
		c, err := New(w.Env("job-controller"))
		if err != nil {
			t.Fatal(err)
		}
		w.Run(c)
		test(t, w)
	})
}

func (w *world) run(pod *corev1.Pod) {
	pods := w.Client.CoreV1().Pods(pod.Namespace)
	live, err := pods.Get(w.t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		return
	}
	live.Spec.NodeName, live.ResourceVersion = "node", ""
	_, _ = pods.Update(w.t.Context(), live, metav1.UpdateOptions{})
	w.SetPhase(pod, corev1.PodRunning)
	w.SetReady(pod, true)
	if code, after := w.script(pod); after >= 0 && w.wait(after) {
		w.end(pod, code)
	}
}

func (w *world) stop(pod *corev1.Pod) {
	if w.wait(w.grace) {
		w.end(pod, 137)
		_ = w.Client.CoreV1().Pods(pod.Namespace).Delete(w.t.Context(), pod.Name, *metav1.NewDeleteOptions(0))
	}
}

func (w *world) wait(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-w.t.Context().Done():
		return false
	}
}

// end has the pod's container exit, once; if it was asked to, not with success.
func (w *world) end(pod *corev1.Pod, code int32) {
	pods := w.Client.CoreV1().Pods(pod.Namespace)
	live, err := pods.Get(w.t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil || live.UID != pod.UID || live.Status.Phase == corev1.PodSucceeded || live.Status.Phase == corev1.PodFailed {
		return
	}
	if live.DeletionTimestamp != nil {
		code = 137
	}
	exited(code, time.Now())(live)
	live.Status.Conditions, live.ResourceVersion = nil, ""
	_, _ = pods.UpdateStatus(w.t.Context(), live, metav1.UpdateOptions{})
}

func (w *world) create(job *batchv1.Job) {
	w.t.Helper()
	job.UID = "" // the cluster gives one
	testcluster.Must[*batchv1.Job](w.t)(w.Client.BatchV1().Jobs("ns").Create(w.t.Context(), job, metav1.CreateOptions{}))
}

func (w *world) get() *batchv1.Job {
	w.t.Helper()
	return testcluster.Must[*batchv1.Job](w.t)(w.Client.BatchV1().Jobs("ns").Get(w.t.Context(), "work", metav1.GetOptions{}))
}

func (w *world) edit(change func(*batchv1.Job)) {
	w.t.Helper()
	job := w.get()
	change(job)
	job.ResourceVersion = "" // whatever the controller does meanwhile
	testcluster.Must[*batchv1.Job](w.t)(w.Client.BatchV1().Jobs("ns").Update(w.t.Context(), job, metav1.UpdateOptions{}))
}

func (w *world) pods() []corev1.Pod {
	w.t.Helper()
	return testcluster.Must[*corev1.PodList](w.t)(w.Client.CoreV1().Pods("ns").List(w.t.Context(), metav1.ListOptions{})).Items
}

// expect compares the Job's status, as describe prints it.
func (w *world) expect(want string) {
	w.t.Helper()
	if got := describe(w.get().Status); got != want {
		w.t.Errorf("status:\ngot  %s\nwant %s", got, want)
	}
}

// describe prints a status in short: numbers that are not 0, and conditions that hold.
func describe(s batchv1.JobStatus) string {
	var words []string
	add := func(name string, n int) {
		if n != 0 {
			words = append(words, fmt.Sprintf("%s=%d", name, n))
		}
	}
	add("active", int(s.Active))
	if s.Ready != nil {
		add("ready", int(*s.Ready))
	}
	if s.Terminating != nil {
		add("terminating", int(*s.Terminating))
	}
	add("succeeded", int(s.Succeeded))
	add("failed", int(s.Failed))
	if u := s.UncountedTerminatedPods; u != nil {
		add("uncounted", len(u.Succeeded)+len(u.Failed))
	}
	if s.CompletedIndexes != "" {
		words = append(words, "completed:"+s.CompletedIndexes)
	}
	if s.FailedIndexes != nil && *s.FailedIndexes != "" {
		words = append(words, "failed:"+*s.FailedIndexes)
	}
	for _, c := range s.Conditions {
		if c.Status == corev1.ConditionTrue {
			words = append(words, string(c.Type))
		}
	}
	return strings.Join(words, " ")
}

// reasons returns the reasons of the events that tell of the Job, each once,
// in order.
func (w *world) reasons() []string {
	var reasons []string
	for _, action := range w.Client.Actions() {
		if created, ok := action.(kubetesting.CreateAction); ok && action.Matches("create", "events") {
			if reason := created.GetObject().(*corev1.Event).Reason; !slices.Contains(reasons, reason) {
				reasons = append(reasons, reason)
			}
		}
	}
	return reasons
}
