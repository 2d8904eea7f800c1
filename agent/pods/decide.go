package pods

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/probes"
)

// Restart back-off: none after the first end of a container, then 10 s,
// doubling up to 5 min; forgotten once a container has lived for 10 min.
// https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy
const (
	// showPullError is how long a failed pull shows its error before its back-off.
	showPullError     = 2 * time.Second
	firstRestartDelay = 10 * time.Second
	maxRestartDelay   = 5 * time.Minute
	restartForgotten  = 10 * time.Minute
	// minimumGrace is what every container gets between signal and SIGKILL.
	minimumGrace = 2 * time.Second
)

// facts is all that a decision about one pod rests on.
type facts struct {
	now time.Time
	// pod is the API's, with the resources that the node has granted.
	pod      *corev1.Pod
	observed observed
	// gone: the API server no longer has the pod.
	gone bool
	// rejected is set when the node does not take the pod.
	rejected *rejection
	// evicted is why the node ends the pod, "" if it does not.
	evicted string
	// mounted: this process has mounted the volumes; tornDown: it has undone
	// everything but the ended containers and their logs.
	mounted, tornDown bool
	// busy holds the operations that are under way, by their key.
	busy map[string]bool
	// failures holds the last failure of an operation, until it succeeds.
	failures map[string]failure
	// restart holds IDs of containers killed in order to be started again.
	restart map[string]bool
	probe   func(containerID string, kind probes.Kind) (probes.Result, bool)
	// resizePending is why the resources of pod are not those that the API
	// asks for, nil if they are.
	resizePending *waiting
	// limits are those that this process gave the pod's cgroup, nil before.
	limits *runtimeapi.LinuxContainerResources
}

// failure is an attempt that did not succeed and will be repeated.
type failure struct {
	reason, message string
	at, retry       time.Time
	count           int
}

// plan names everything that should be done now.
type plan struct {
	mount       bool
	sandbox     *sandboxStart
	start       []containerStart
	kill        []containerKill
	resize      []containerResize
	limits      *runtimeapi.LinuxContainerResources // for the pod's cgroup; nil = as they are
	remove      []string                            // IDs of dead containers nobody needs
	stopOrphans []string                            // IDs of old sandboxes to remove

	// ending: nothing is started any more. tearDown: nothing runs, undo the
	// rest. erase: the API server has forgotten the pod, so do we.
	ending, tearDown, erase bool
	endReason, endMessage   string

	waiting map[string]waiting // by container name
	again   time.Duration      // look again after that; 0 = only when woken
}

type sandboxStart struct {
	attempt uint32
	stop    []string // sandboxes to stop before
}

type containerStart struct {
	name         string
	sandboxID    string
	restartCount int32
	backoff      time.Duration // recorded for the end of this one
	replaces     string        // ID of a created, never started container
	target       string        // ID of the container whose processes an ephemeral one sees
}

type containerKill struct {
	id, name string
	grace    time.Duration
	message  string // of the event
	restart  bool
}

// waiting is why a container does not run; empty reason = the default one.
type waiting struct{ reason, message string }

// Keys of operations.
const (
	opMount    = "mount"
	opSandbox  = "sandbox"
	opTearDown = "tear-down"
	opErase    = "erase"
)

func startKey(name string) string { return "start/" + name }
func killKey(id string) string    { return "kill/" + id }
func removeKey(id string) string  { return "remove/" + id }

// decide says what should be done about a pod. It is pure; carrying the plan
// out in part, or twice, is harmless.
func decide(f facts) plan {
	p := plan{waiting: map[string]waiting{}}
	if reason, message, ending := f.ends(&p); ending {
		p.ending, p.endReason, p.endMessage = true, reason, message
		f.end(&p)
		return p
	}
	f.cleanUp(&p)
	if !f.mounted {
		p.mount = f.may(&p, opMount)
		return p
	}
	current := f.observed.current()
	if current == nil {
		f.decideSandbox(&p)
		return p
	}
	if !f.decideResize(&p) {
		return p
	}
	f.decideEphemeral(&p, current)
	if !f.decideInit(&p, current) {
		return p
	}
	f.decideApp(&p, current)
	return p
}

// may reports whether an operation can begin now; if only time stands in the
// way, the plan says when to look again.
func (f facts) may(p *plan, key string) bool {
	if f.busy[key] {
		return false
	}
	if last, failed := f.failures[key]; failed && f.now.Before(last.retry) {
		p.lookAgain(last.retry.Sub(f.now))
		return false
	}
	return true
}

func (p *plan) lookAgain(d time.Duration) {
	if p.again == 0 || d < p.again {
		p.again = d
	}
}

// decideSandbox plans a new sandbox, unless nothing would run in it.
func (f facts) decideSandbox(p *plan) {
	if f.busy[opSandbox] {
		return
	}
	next := &sandboxStart{}
	for _, s := range f.observed.sandboxes {
		next.attempt = max(next.attempt, s.attempt+1)
		next.stop = append(next.stop, s.id)
	}
	if f.finishedBefore() {
		p.ending = true
		f.end(p)
		return
	}
	if f.may(p, opSandbox) {
		p.sandbox = next
	}
}

// finishedBefore reports whether a pod that lost its sandbox has nothing left
// to run: it never restarts, or all of its containers are done.
func (f facts) finishedBefore() bool {
	ran := false
	for _, list := range f.observed.containers {
		ran = ran || len(list) > 0
	}
	if !ran {
		return false
	}
	if f.pod.Spec.RestartPolicy == corev1.RestartPolicyNever {
		return true
	}
	for i := range f.pod.Spec.Containers {
		c := &f.pod.Spec.Containers[i]
		latest := f.observed.latest(c.Name)
		if latest == nil || latest.state != stateExited || restartsAfter(&f.pod.Spec, c, latest.exitCode) {
			return false
		}
	}
	return true
}

// decideApp plans for the app containers, and ends the pod when all are done.
func (f facts) decideApp(p *plan, current *sandbox) {
	done := true
	for i := range f.pod.Spec.Containers {
		c := &f.pod.Spec.Containers[i]
		latest := f.observed.latest(c.Name)
		switch {
		case latest == nil || latest.sandboxID != current.id && latest.state != stateExited:
			done = false
			f.startContainer(p, c, current, nil)
		case latest.state == stateRunning:
			done = false
			f.checkHealth(p, c, latest)
		case latest.state == stateUnknown:
			done = false
			f.stop(p, latest, f.grace(c, ""), fmt.Sprintf("Container %s is in an unknown state", c.Name), true)
		case latest.state == stateCreated, f.restart[latest.id], restartsAfter(&f.pod.Spec, c, latest.exitCode):
			done = false
			f.startContainer(p, c, current, latest)
		default:
			done = done && !f.busy[startKey(c.Name)]
		}
	}
	if done {
		p.ending = true
		p.start = nil
		f.end(p)
	}
}

// checkHealth plans to kill a running container that changed or is unwell.
func (f facts) checkHealth(p *plan, c *corev1.Container, running *container) {
	kind, message := probes.Kind(""), ""
	switch {
	case f.busy[startKey(c.Name)]: // its postStart hook is still under way
		return
	case running.hash != hashOf(c):
		message = fmt.Sprintf("Container %s definition changed", c.Name)
	case f.failed(running.id, probes.Liveness):
		kind, message = probes.Liveness, fmt.Sprintf("Container %s failed liveness probe", c.Name)
	case f.failed(running.id, probes.Startup):
		kind, message = probes.Startup, fmt.Sprintf("Container %s failed startup probe", c.Name)
	default:
		return
	}
	restart := kind == "" || restartsOnKill(&f.pod.Spec, c)
	if restart {
		message += ", will be restarted"
	}
	f.stop(p, running, f.grace(c, kind), message, restart)
}

func (f facts) failed(id string, kind probes.Kind) bool {
	result, known := f.probe(id, kind)
	return known && result == probes.Failure
}

// grace is how long a container of a pod that lives on may take to stop.
func (f facts) grace(c *corev1.Container, kind probes.Kind) time.Duration {
	return max(probes.GracePeriod(f.pod, c, kind), minimumGrace)
}

// stop plans to kill a container. A kill that is under way is planned again,
// since its grace may have become shorter; one that failed waits.
func (f facts) stop(p *plan, c *container, grace time.Duration, message string, restart bool) {
	if key := killKey(c.id); f.busy[key] || f.may(p, key) {
		p.kill = append(p.kill, containerKill{id: c.id, name: c.name, grace: grace, message: message, restart: restart})
	}
}

// startContainer plans a start, or says what the container waits for. last is
// the container of that name before, nil if there was none.
func (f facts) startContainer(p *plan, c *corev1.Container, current *sandbox, last *container) {
	key := startKey(c.Name)
	if f.busy[key] || last != nil && f.busy[killKey(last.id)] {
		return
	}
	start := containerStart{name: c.Name, sandboxID: current.id}
	switch {
	case last == nil:
		start.restartCount = f.restartCountFromAPI(c.Name)
	case last.state == stateCreated:
		start.restartCount, start.backoff, start.replaces = last.restartCount, last.backoff, last.id
	default:
		delay, next := restartDelay(last)
		start.restartCount, start.backoff = last.restartCount+1, next
		if until := last.finished.Add(delay); f.now.Before(until) {
			p.waiting[c.Name] = waiting{reasonCrashLoopBackOff,
				fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", delay, c.Name, nameOf(f.pod))}
			p.lookAgain(until.Sub(f.now))
			return
		}
	}
	if last, failed := f.failures[key]; failed {
		p.waiting[c.Name] = last.waiting(f.now, c.Image)
		if left := last.at.Add(showPullError).Sub(f.now); left > 0 {
			p.lookAgain(left)
		}
	}
	if f.may(p, key) {
		p.start = append(p.start, start)
	}
}

// restartDelay is how long to wait after the end of last, and the delay to
// record for the container that follows it.
func restartDelay(last *container) (delay, next time.Duration) {
	if last.finished.Sub(last.created) > restartForgotten || last.backoff == 0 {
		return 0, firstRestartDelay
	}
	return last.backoff, min(2*last.backoff, maxRestartDelay)
}

// restartCountFromAPI continues the count of containers that the runtime has
// forgotten, for example after its state was lost.
func (f facts) restartCountFromAPI(name string) int32 {
	status := statusOf(&f.pod.Status, name)
	switch {
	case status == nil || status.ContainerID == "":
		return 0
	case status.State.Waiting != nil && status.LastTerminationState.Terminated == nil:
		return status.RestartCount // it was created, but never ran
	}
	return status.RestartCount + 1
}

// waiting is what users see of a failed start until it is repeated. A failed
// pull shows its error for a moment, then that it backs off.
func (x failure) waiting(now time.Time, image string) waiting {
	if x.reason == reasonErrImagePull && now.Sub(x.at) >= showPullError {
		return waiting{reasonImagePullBackOff, fmt.Sprintf("Back-off pulling image %q: %s: %s", image, x.reason, x.message)}
	}
	return waiting{x.reason, x.message}
}

// cleanUp plans to remove ended containers that are neither the newest of
// their name nor the one before (for logs --previous), and old sandboxes
// without containers.
func (f facts) cleanUp(p *plan) {
	occupied := map[string]bool{} // sandbox IDs
	for name, list := range f.observed.containers {
		if f.busy[startKey(name)] {
			return
		}
		for i, c := range list {
			occupied[c.sandboxID] = true // it goes after its containers, whose logs would be left
			if i >= 2 && c.state == stateExited && f.may(p, removeKey(c.id)) {
				p.remove = append(p.remove, c.id)
			}
		}
	}
	for i, s := range f.observed.sandboxes {
		if i > 0 && !occupied[s.id] && !f.busy[opSandbox] && f.may(p, removeKey(s.id)) {
			p.stopOrphans = append(p.stopOrphans, s.id)
		}
	}
}
