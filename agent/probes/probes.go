// Package probes runs the startup, liveness and readiness checks of this node's containers.
//
// agent/pods tells it which containers run (Sync) and reads what each check stands at (Result); every change of a result wakes
// the pod's worker through Config.Changed. What a failure means (restart the container, take the pod out of its Services) is
// decided by agent/pods alone.
//
//	pods ──Sync(targets)──► Prober ──one goroutine per container and kind──► exec, HTTP, TCP, gRPC
//	pods ◄──Changed, Result── Prober
//
// The rules are kubelet's (kubernetes/pkg/kubelet/prober/worker.go): readiness starts as failed, liveness as passed, startup as
// unknown; liveness and readiness wait for startup; after a failed liveness check, and after either outcome of a startup check,
// the container is left alone until it has a new container ID.
package probes

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Kind is one of the three checks a container may have. Its text is the one used in events.
type Kind string

// The kinds of check.
const (
	Startup   Kind = "Startup"
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
)

// Result is what a check stands at, thresholds applied.
type Result bool

// The results of a check.
const (
	Success Result = true
	Failure Result = false
)

// String returns "success" or "failure".
func (r Result) String() string {
	if r == Success {
		return "success"
	}
	return "failure"
}

// Reasons of the events that checks emit, as kubelet names them.
const (
	ReasonUnhealthy = "Unhealthy"
	ReasonWarning   = "ProbeWarning"
)

// Target is one running container. Targets are compared by ContainerID: a restarted container is a new target.
type Target struct {
	PodUID      types.UID
	Pod         *corev1.Pod
	Container   corev1.Container
	ContainerID string // as CRI reports it, without "containerd://"
	PodIP       string
	StartedAt   time.Time
}

// ExecFunc runs cmd in a container and returns its exit code and combined output. A command that was still running at the
// timeout is reported as an error for which errors.Is(err, context.DeadlineExceeded) or the gRPC code DeadlineExceeded holds.
type ExecFunc func(ctx context.Context, containerID string, cmd []string, timeout time.Duration) (exit int, out []byte, err error)

// Config is what a Prober needs from the rest of the agent.
type Config struct {
	Exec ExecFunc
	// Changed is called after a result of a pod's container changed. It must not block and may call Result.
	Changed func(podUID types.UID)
	// Event reports an event about a container of pod to the user.
	Event func(pod *corev1.Pod, container, eventType, reason, message string)
	Log   *slog.Logger
	// Jitter returns a duration in [0, limit). It spreads the first checks of containers that were already running when the
	// Prober was made, that is, after a restart of the agent. Nil means at random.
	Jitter func(limit time.Duration) time.Duration
}

// Prober runs the checks of all containers of this node. Its methods may be called concurrently.
type Prober struct {
	cfg     Config
	check   checker
	created time.Time

	mu         sync.Mutex
	containers map[string]*container // by container ID
}

// container is one target with its workers and their results; Prober.mu guards it.
type container struct {
	target  Target
	results map[Kind]Result
	workers map[Kind]*worker
	started chan struct{} // closed once the startup check has passed, or if there is none
}

// New validates cfg and returns a Prober that checks nothing yet.
func New(cfg Config) (*Prober, error) {
	switch {
	case cfg.Exec == nil:
		return nil, errors.New("probes: Exec is missing")
	case cfg.Changed == nil:
		return nil, errors.New("probes: Changed is missing")
	case cfg.Event == nil:
		return nil, errors.New("probes: Event is missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Jitter == nil {
		cfg.Jitter = func(limit time.Duration) time.Duration { return rand.N(limit) }
	}
	return &Prober{
		cfg:        cfg,
		check:      newChecker(cfg.Exec),
		created:    time.Now(),
		containers: map[string]*container{},
	}, nil
}

// Sync makes the checks of one pod those of its running containers: targets, all of the same pod. Containers of that pod that
// are not among them are forgotten; a check that a known container no longer has is stopped and counts as passed. It is
// idempotent and cheap when nothing changed. Use Remove for a pod without running containers.
func (p *Prober) Sync(targets []Target) {
	if len(targets) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := make(map[string]bool, len(targets))
	for _, t := range targets {
		wanted[t.ContainerID] = true
		c, known := p.containers[t.ContainerID]
		if !known {
			c = p.start(t)
		}
		c.target = t
		p.quieten(c)
	}
	for id, c := range p.containers {
		if c.target.PodUID == targets[0].PodUID && !wanted[id] {
			p.forget(id, c)
		}
	}
}

// Result returns what a container's check stands at. It is not known if the container has no such check, or is no target, or its
// startup check has not come to an outcome yet.
func (p *Prober) Result(containerID string, kind Kind) (result Result, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.containers[containerID]
	if !ok {
		return Failure, false
	}
	result, known = c.results[kind]
	return result, known
}

// Remove stops every check of a pod and forgets their results.
func (p *Prober) Remove(podUID types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, c := range p.containers {
		if c.target.PodUID == podUID {
			p.forget(id, c)
		}
	}
}

// Spec returns a container's check of one kind, or nil.
func Spec(c *corev1.Container, kind Kind) *corev1.Probe {
	switch kind {
	case Startup:
		return c.StartupProbe
	case Liveness:
		return c.LivenessProbe
	default:
		return c.ReadinessProbe
	}
}

// GracePeriod returns how long a container that failed its check of this kind may take to stop: the check's own
// terminationGracePeriodSeconds, else the pod's (default 30 s).
func GracePeriod(pod *corev1.Pod, c *corev1.Container, kind Kind) time.Duration {
	seconds := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		seconds = *pod.Spec.TerminationGracePeriodSeconds
	}
	if spec := Spec(c, kind); spec != nil && spec.TerminationGracePeriodSeconds != nil {
		seconds = *spec.TerminationGracePeriodSeconds
	}
	return time.Duration(seconds) * time.Second
}

// start begins the checks of a new target.
func (p *Prober) start(t Target) *container {
	c := &container{
		target:  t,
		results: initialResults(t),
		workers: map[Kind]*worker{},
		started: make(chan struct{}),
	}
	if t.Container.StartupProbe == nil || c.results[Startup] == Success {
		close(c.started)
	}
	p.containers[t.ContainerID] = c
	for _, kind := range []Kind{Startup, Liveness, Readiness} {
		spec := Spec(&t.Container, kind)
		if spec == nil {
			continue
		}
		if _, done := c.results[kind]; done && kind == Startup {
			continue
		}
		w := &worker{prober: p, container: c, containerID: t.ContainerID, kind: kind, spec: spec}
		ctx, cancel := context.WithCancel(context.Background())
		w.cancel = cancel
		c.workers[kind] = w
		go w.run(ctx)
	}
	return c
}

// initialResults are the results before the first check. What the API server holds for this very container counts: it can only
// stem from checks of a former agent, and a restarted agent must not flip a condition.
func initialResults(t Target) map[Kind]Result {
	results := map[Kind]Result{}
	status := publishedStatus(t)
	if t.Container.StartupProbe != nil && status.Started != nil && *status.Started {
		results[Startup] = Success
	}
	if t.Container.LivenessProbe != nil {
		results[Liveness] = Success
	}
	if t.Container.ReadinessProbe != nil {
		results[Readiness] = Result(status.Ready)
	}
	return results
}

// publishedStatus returns the container's status as the API server knows it, or a zero one if that is about another incarnation.
func publishedStatus(t Target) corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{t.Pod.Status.ContainerStatuses, t.Pod.Status.InitContainerStatuses} {
		for _, s := range list {
			_, id, _ := strings.Cut(s.ContainerID, "://")
			if s.Name == t.Container.Name && id == t.ContainerID {
				return s
			}
		}
	}
	return corev1.ContainerStatus{}
}

// quieten ends the checks that could restart a container of a pod being deleted, and those that its target no longer has.
// Readiness goes on until the container stops.
func (p *Prober) quieten(c *container) {
	deleted := c.target.Pod.DeletionTimestamp != nil
	for kind, w := range c.workers {
		if Spec(&c.target.Container, kind) == nil || deleted && kind != Readiness {
			w.cancel()
			delete(c.workers, kind)
			p.set(c, kind, Success)
		}
	}
}

// forget stops a container's checks and drops its results.
func (p *Prober) forget(id string, c *container) {
	for _, w := range c.workers {
		w.cancel()
	}
	delete(p.containers, id)
}

// set stores a result, lets waiting checks begin once startup has passed, and reports whether anything changed.
func (p *Prober) set(c *container, kind Kind, result Result) (changed bool) {
	before, known := c.results[kind]
	c.results[kind] = result
	if kind == Startup && result == Success {
		select {
		case <-c.started:
		default:
			close(c.started)
		}
	}
	return !known || before != result
}

// publish stores a worker's result unless the worker was stopped meanwhile, and wakes the pod's worker if it changed.
func (p *Prober) publish(ctx context.Context, w *worker, result Result) {
	p.mu.Lock()
	if ctx.Err() != nil {
		p.mu.Unlock()
		return
	}
	changed := p.set(w.container, w.kind, result)
	target := w.container.target
	p.mu.Unlock()
	if changed {
		p.cfg.Log.Debug("probe result changed", "pod", target.Pod.Namespace+"/"+target.Pod.Name,
			"container", target.Container.Name, "probe", string(w.kind), "result", result.String())
		p.cfg.Changed(target.PodUID)
	}
}

// target returns the container as of the last Sync.
func (p *Prober) target(c *container) Target {
	p.mu.Lock()
	defer p.mu.Unlock()
	return c.target
}
