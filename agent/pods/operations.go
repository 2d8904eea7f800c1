package pods

import (
	"context"
	"errors"
	"time"
)

// Delays before a failed operation is repeated: those of pulls, and all others.
const (
	firstPullDelay  = 10 * time.Second
	maxPullDelay    = 5 * time.Minute
	firstRetryDelay = time.Second
	maxRetryDelay   = 10 * time.Second
)

// operation is work for a pod that takes long.
type operation struct {
	cancel   context.CancelFunc
	done     chan struct{}
	deadline time.Time // of a kill: when SIGKILL comes
}

// opError is a failure with the reason that users see.
type opError struct {
	reason string
	err    error
}

func (e *opError) Error() string { return e.reason + ": " + e.err.Error() }
func (e *opError) Unwrap() error { return e.err }

func failed(reason string, err error) error { return &opError{reason, err} }

// begin runs an operation unless one with the same key is under way. Its end
// wakes the worker, which then looks at the runtime again.
func (w *worker) begin(ctx context.Context, key string, work func(context.Context) error) *operation {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ops[key] != nil {
		return nil
	}
	return w.launch(ctx, key, work)
}

// launch runs an operation in place of any other of that key; w.mu is held.
func (w *worker) launch(ctx context.Context, key string, work func(context.Context) error) *operation {
	ctx, cancel := context.WithCancel(ctx)
	op := &operation{cancel: cancel, done: make(chan struct{})}
	w.ops[key] = op
	go func() {
		defer close(op.done)
		defer cancel()
		err := work(ctx)
		w.finish(ctx, key, op, err)
	}()
	return op
}

// finish records how an operation ended.
func (w *worker) finish(ctx context.Context, key string, op *operation, err error) {
	w.mu.Lock()
	before := w.failures[key]
	if w.ops[key] == op {
		delete(w.ops, key)
	}
	w.stale = true
	w.ended++
	switch {
	case err == nil:
		delete(w.failures, key)
	case ctx.Err() == nil:
		w.failures[key] = nextFailure(before, err, time.Now())
	}
	isNews := err != nil && ctx.Err() == nil && w.failures[key].message != before.message
	w.mu.Unlock()
	if isNews {
		w.log.Info("operation failed, will be repeated", "operation", key, "err", err)
	}
	w.wakeUp()
}

// nextFailure follows the failure before (zero if there was none).
func nextFailure(before failure, err error, now time.Time) failure {
	next := failure{message: err.Error(), at: now, count: before.count + 1}
	var known *opError
	if errors.As(err, &known) {
		next.reason, next.message = known.reason, known.err.Error()
	}
	first, limit := firstRetryDelay, maxRetryDelay
	if next.reason == reasonErrImagePull {
		first, limit = firstPullDelay, maxPullDelay
	}
	if next.reason != before.reason {
		next.count = 1
	}
	next.retry = now.Add(min(first<<min(next.count-1, 10), limit))
	return next
}

// cancelStarts ends everything that would start something, but for a sandbox:
// a runtime may finish one although nobody waits for it, and it would be left.
func (w *worker) cancelStarts() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, op := range w.ops {
		if isStart(key) && key != opSandbox {
			op.cancel()
		}
	}
}

// wait returns when every operation has ended.
func (w *worker) wait() {
	w.mu.Lock()
	var all []*operation
	for _, op := range w.ops {
		all = append(all, op)
	}
	w.mu.Unlock()
	for _, op := range all {
		<-op.done
	}
}
