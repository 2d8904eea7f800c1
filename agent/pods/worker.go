package pods

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/agent/probes"
)

// observeRetry is the pause before the runtime is asked again after an error.
const observeRetry = time.Second

// worker looks after one pod. Its passes run in one goroutine; operations run
// beside it and report through mu and wake.
type worker struct {
	m    *Manager
	uid  types.UID
	log  *slog.Logger
	wake chan struct{} // holds at most one

	mu       sync.Mutex
	pod      *corev1.Pod // newest known; never modified
	gone     bool
	erased   bool
	stale    bool     // observed must be read again
	observed observed // of the last pass
	status   *corev1.PodStatus
	ops      map[string]*operation
	failures map[string]failure
	restart  map[string]bool
	mounted  bool
	tornDown bool
	// deleteSent: the API server was told that nothing is left.
	deleteSent bool

	// warnedMounts holds when each volume's failure was last reported, by its
	// text; only used by the operation that mounts.
	warnedMounts map[string]time.Time

	// Only used by the worker's goroutine.
	judged    bool // admission has been decided
	rejected  *rejection
	messages  map[string]string
	announced map[string]waiting
	written   corev1.PodStatus // the last one sent to the API, at writtenAt
	writtenAt time.Time
}

func newWorker(m *Manager, pod *corev1.Pod) *worker {
	return &worker{
		m: m, uid: pod.UID, pod: pod, stale: true,
		log:       m.log.With("pod", keyOf(pod), "uid", pod.UID),
		wake:      make(chan struct{}, 1),
		ops:       map[string]*operation{},
		failures:  map[string]failure{},
		restart:   map[string]bool{},
		messages:  map[string]string{},
		announced: map[string]waiting{},
	}
}

func (w *worker) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// observeAgain wakes the worker to read the runtime anew.
func (w *worker) observeAgain() {
	w.mu.Lock()
	w.stale = true
	w.mu.Unlock()
	w.wakeUp()
}

// setPod takes over a pod from the API if it is newer.
func (w *worker) setPod(pod *corev1.Pod) {
	w.mu.Lock()
	if !isOlder(pod, w.pod) {
		w.pod = pod
	}
	w.mu.Unlock()
	w.wakeUp()
}

// isOlder compares resource versions (KEP-5504 makes them comparable).
func isOlder(a, b *corev1.Pod) bool {
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errX == nil && errY == nil && x < y
}

func (w *worker) setGone() {
	w.mu.Lock()
	w.gone = true
	w.mu.Unlock()
	w.wakeUp()
}

// retryNow forgets the waiting times of what failed for lack of an object.
func (w *worker) retryNow() {
	w.mu.Lock()
	for key, x := range w.failures {
		if key == opMount || x.reason == reasonCreateConfigError {
			x.retry = time.Time{}
			w.failures[key] = x
		}
	}
	w.mu.Unlock()
	w.wakeUp()
}

// run makes passes until nothing is left of the pod or ctx is done.
func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			w.wait()
			return
		case <-w.wake:
		case <-timer.C:
		}
		again := w.pass(ctx)
		if w.isErased() {
			w.m.forget(w.uid)
			return
		}
		if !timer.Stop() {
			select {
			case <-timer.C:
			default:
			}
		}
		if again > 0 {
			timer.Reset(again)
		}
	}
}

func (w *worker) isErased() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.erased
}

// pass reads, decides and carries out once. It returns when to look again, 0
// for when woken.
func (w *worker) pass(ctx context.Context) time.Duration {
	f, err := w.read(ctx)
	if err != nil {
		if ctx.Err() == nil {
			w.log.Error("read pod from the runtime", "err", err)
		}
		w.mu.Lock()
		w.stale = true
		w.mu.Unlock()
		return observeRetry
	}
	w.judge(&f)
	p := decide(f)
	s := status(f, p, w.m.cfg.NodeIPs)
	w.mu.Lock()
	w.status = &s
	w.mu.Unlock()
	w.syncProbes(f)
	w.announce(f, p)
	w.carryOut(ctx, f, p)
	w.publish(ctx, f, &p, s)
	return p.again
}

// read gathers the facts.
func (w *worker) read(ctx context.Context) (facts, error) {
	w.mu.Lock()
	stale := w.stale
	w.stale = false
	w.mu.Unlock()
	if stale {
		o, err := observe(ctx, w.m.cfg.Runtime, w.uid, w.messages)
		if err != nil {
			return facts{}, err
		}
		w.mu.Lock()
		w.observed = o
		w.forgetRemoved()
		w.mu.Unlock()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	f := facts{
		now: time.Now(), pod: w.pod, gone: w.gone, observed: w.observed,
		mounted: w.mounted, tornDown: w.tornDown, rejected: w.rejected,
		busy: map[string]bool{}, failures: map[string]failure{}, restart: map[string]bool{},
		probe: w.m.cfg.Prober.Result,
	}
	for key := range w.ops {
		f.busy[key] = true
	}
	for key, x := range w.failures {
		f.failures[key] = x
	}
	for id := range w.restart {
		f.restart[id] = true
	}
	return f, nil
}

// forgetRemoved drops what is remembered of containers that no longer exist;
// w.mu is held.
func (w *worker) forgetRemoved() {
	exists := map[string]bool{}
	for _, list := range w.observed.containers {
		for _, c := range list {
			exists[c.id] = true
		}
	}
	maps.DeleteFunc(w.restart, func(id string, _ bool) bool { return !exists[id] })
	maps.DeleteFunc(w.messages, func(id, _ string) bool { return !exists[id] })
}

// syncProbes checks what runs.
func (w *worker) syncProbes(f facts) {
	var targets []probes.Target
	ip := ""
	if ips := f.podIPs(w.m.cfg.NodeIPs); len(ips) > 0 {
		ip = ips[0]
	}
	check := func(c *corev1.Container) {
		running := f.observed.active(c.Name)
		if running == nil || running.state != stateRunning || f.busy[startKey(c.Name)] {
			return
		}
		targets = append(targets, probes.Target{PodUID: w.uid, Pod: f.pod, Container: *c,
			ContainerID: running.id, PodIP: ip, StartedAt: running.started})
	}
	for i := range f.pod.Spec.InitContainers {
		if isSidecar(&f.pod.Spec.InitContainers[i]) {
			check(&f.pod.Spec.InitContainers[i])
		}
	}
	for i := range f.pod.Spec.Containers {
		check(&f.pod.Spec.Containers[i])
	}
	if len(targets) == 0 {
		w.m.cfg.Prober.Remove(w.uid)
		return
	}
	w.m.cfg.Prober.Sync(targets)
}

// view is the pod with the status that the agent sees, nil for pods that the
// API server does not know.
func (w *worker) view() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		return nil
	}
	pod := w.pod.DeepCopy()
	if w.status != nil {
		w.status.DeepCopyInto(&pod.Status)
	}
	return pod
}

// container finds the newest instance of a container.
func (w *worker) container(name string) (Container, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.observed.containers[name]
	if len(list) == 0 {
		return Container{}, false
	}
	out := Container{ID: list[0].id, SandboxID: list[0].sandboxID, State: list[0].state.String(), LogPath: w.logFile(list[0])}
	if len(list) > 1 {
		out.PreviousLogPath = w.logFile(list[1])
	}
	return out, true
}

func (w *worker) logFile(c container) string {
	if filepath.IsAbs(c.logPath) {
		return c.logPath
	}
	return filepath.Join(w.m.node.podLogDir(w.pod), logPath(c.name, c.restartCount))
}

func (s state) String() string {
	switch s {
	case stateCreated:
		return "created"
	case stateRunning:
		return "running"
	case stateExited:
		return "exited"
	}
	return "unknown"
}
