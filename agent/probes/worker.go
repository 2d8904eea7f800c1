package probes

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/probe"
)

// attempts is how often a check that could not be carried out (as opposed to one that failed) is tried at once, as kubelet does.
const attempts = 3

// worker carries out one check of one container until its outcome is final or it is stopped.
type worker struct {
	prober      *Prober
	container   *container
	containerID string
	kind        Kind
	spec        *corev1.Probe
	cancel      context.CancelFunc
	streak      streak
}

func (w *worker) run(ctx context.Context) {
	if w.kind != Startup {
		select {
		case <-ctx.Done():
			return
		case <-w.container.started:
		}
	}
	if !sleep(ctx, w.firstDelay(time.Now())) {
		return
	}
	ticker := time.NewTicker(w.period())
	defer ticker.Stop()
	for w.once(ctx) {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// once carries out the check and reports whether to go on.
func (w *worker) once(ctx context.Context) bool {
	outcome, carriedOut := w.observe(ctx)
	if !carriedOut || ctx.Err() != nil {
		return ctx.Err() == nil
	}
	if !w.streak.reached(outcome, w.spec) {
		return true
	}
	w.prober.publish(ctx, w, outcome)
	final := w.kind == Startup || w.kind == Liveness && outcome == Failure
	return !final
}

// observe carries out the check once and reports it to the user unless it passed. A check that could not be carried out, for
// example because its named port does not exist, counts neither way.
func (w *worker) observe(ctx context.Context) (outcome Result, carriedOut bool) {
	target := w.prober.target(w.container)
	var state probe.Result
	var output string
	var err error
	for range attempts {
		if state, output, err = w.prober.check.run(ctx, w.spec, target); err == nil || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return Failure, false
	}
	reason, message := ReasonUnhealthy, ""
	switch {
	case err != nil:
		message = fmt.Sprintf("%s probe errored and resulted in %s state: %s", w.kind, state, err)
	case state == probe.Warning:
		reason, message = ReasonWarning, fmt.Sprintf("%s probe warning: %s", w.kind, output)
	case state == probe.Failure:
		message = fmt.Sprintf("%s probe failed: %s", w.kind, output)
	}
	if message != "" {
		w.prober.cfg.Event(target.Pod, target.Container.Name, corev1.EventTypeWarning, reason, message)
	}
	return Result(state == probe.Success || state == probe.Warning), err == nil
}

// firstDelay is how long after now the first check is due: initialDelaySeconds after the start of the container. Checks of
// containers older than the agent are spread over one period.
func (w *worker) firstDelay(now time.Time) time.Duration {
	target := w.prober.target(w.container)
	due := target.StartedAt.Add(time.Duration(w.spec.InitialDelaySeconds) * time.Second)
	if due.After(now) {
		return due.Sub(now)
	}
	if target.StartedAt.Before(w.prober.created) {
		return w.prober.cfg.Jitter(w.period())
	}
	return 0
}

func (w *worker) period() time.Duration {
	return seconds(w.spec.PeriodSeconds, 10)
}

// streak counts equal outcomes in a row.
type streak struct {
	last   Result
	length int32
}

// reached adds an outcome and reports whether as many in a row have been seen as the check's threshold asks for.
func (s *streak) reached(outcome Result, spec *corev1.Probe) bool {
	if s.length == 0 || s.last != outcome {
		*s = streak{last: outcome}
	}
	s.length++
	if outcome == Success {
		return s.length >= spec.SuccessThreshold
	}
	return s.length >= spec.FailureThreshold
}

// seconds converts a field of a check; the API server sets defaults, so zero only appears in hand-made objects.
func seconds(value, defaultValue int32) time.Duration {
	if value <= 0 {
		value = defaultValue
	}
	return time.Duration(value) * time.Second
}

// sleep waits for d and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
