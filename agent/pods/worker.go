package pods

import (
	"context"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

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
	ended    uint64 // counts the ends of operations
	failures map[string]failure
	restart  map[string]bool
	mounted  bool
	tornDown bool
	// limits are what limitPod last gave the pod's cgroup.
	limits *runtimeapi.LinuxContainerResources
	// evicted is why the node ends the pod, "" if it does not.
	evicted string
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
	// resizePending and resizeProgress are as last announced.
	resizePending, resizeProgress *waiting
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
	f.pod, f.resizePending = w.m.allocate(f.pod)
	p := decide(f)
	s := status(f, p, w.m.cfg.NodeIPs)
	w.mu.Lock()
	w.status = &s
	w.mu.Unlock()
	w.syncProbes(f)
	w.announce(f, p)
	w.announceResize(f, p)
	w.carryOut(ctx, f, p)
	w.publish(ctx, f, &p, s)
	return p.again
}

// read gathers the facts. What is observed is not older than the end of any
// operation: else its work would neither be seen nor be under way, and begun
// again.
func (w *worker) read(ctx context.Context) (facts, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.stale {
		w.stale = false
		ended := w.ended
		w.mu.Unlock()
		o, err := observe(ctx, w.m.cfg.Runtime, w.uid, w.messages)
		w.mu.Lock()
		if err != nil {
			return facts{}, err
		}
		w.observed = o
		w.forgetRemoved()
		if w.ended == ended {
			break // events of the runtime wake for another pass
		}
	}
	f := facts{
		now: time.Now(), pod: w.pod, gone: w.gone, observed: w.observed,
		mounted: w.mounted, tornDown: w.tornDown, rejected: w.rejected, evicted: w.evicted, limits: w.limits,
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
