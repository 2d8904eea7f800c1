package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"weft.dev/weft/agent/desired"
	"weft.dev/weft/agent/ipam"
	"weft.dev/weft/dataplane"
)

// The pace of the loop. A pass that informers asked for waits as long as the
// one before took, up to maxRest, so that a churning cluster takes at most
// half of a CPU; a pass that a CNI call waits for does not.
const (
	maxRest        = time.Second
	firstRetry     = 100 * time.Millisecond
	maxRetry       = 30 * time.Second
	recordInterval = time.Minute
)

// loop is the one goroutine that calls Apply.
func (n *Network) loop(ctx context.Context) {
	records := time.NewTicker(recordInterval)
	defer records.Stop()
	n.workOffRecords()
	var (
		rest  time.Duration
		retry <-chan time.Time
		delay time.Duration
		said  string
	)
	wake(n.urgent)
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.urgent:
		case <-retry:
		case <-n.dirty:
			n.rest(ctx, rest)
		case <-records.C:
			n.workOffRecords()
			continue
		}
		start := time.Now()
		err := n.pass(ctx)
		rest = min(time.Since(start), maxRest)
		if ctx.Err() != nil {
			return
		}
		said = n.report(said, err)
		retry, delay = nil, nextDelay(delay, err)
		if err != nil {
			retry = time.After(delay)
		}
	}
}

// rest waits for d, less if somebody waits for the next pass.
func (n *Network) rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-n.urgent:
	case <-time.After(d):
	}
}

func nextDelay(last time.Duration, err error) time.Duration {
	if err == nil {
		return 0
	}
	return min(max(2*last, firstRetry), maxRetry)
}

// report logs an error when it is new, and its end. It returns what it has
// last said.
func (n *Network) report(said string, err error) string {
	switch {
	case err == nil && said == "":
		return ""
	case err == nil:
		n.log.Info("the node's kernel is in line with the cluster again")
		return ""
	case err.Error() == said:
		return said
	}
	n.log.Error("the node's kernel is not in line with the cluster; trying again", "error", err)
	return err.Error()
}

// pass makes the kernel equal to what is wanted now, and answers those who
// wait for it.
func (n *Network) pass(ctx context.Context) error {
	in, changes, err := n.inputs()
	if err != nil {
		return err
	}
	if !n.prefixes(in) {
		return nil // the Node object will change, and that wakes us
	}
	if !n.isReady() {
		close(n.ready)
	}
	state := n.memo.Compute(in)
	if len(state.Node.Addresses) == 0 {
		return fmt.Errorf("node %s has no InternalIP yet", n.cfg.NodeName)
	}
	err = n.cfg.Dataplane.Apply(ctx, state)
	if ctx.Err() != nil {
		return err
	}
	ofPods, other := splitErrors(err)
	return errors.Join(err, n.finish(changes, ofPods, other), n.health.sync(desired.HealthChecks(in)))
}

// finish settles everything that the pass has covered: those who wait for a
// change up to changes are answered, and sandboxes that left are forgotten.
func (n *Network) finish(changes uint64, ofPods map[string]error, other error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lastErr = other
	if !n.applied && other == nil {
		n.applied = true
		if n.cfg.OnReady != nil {
			n.cfg.OnReady()
		}
	}
	var still []waiter
	for _, w := range n.waiters {
		if w.change > changes || !w.settle(ofPods[w.sandboxID], other) {
			still = append(still, w)
		}
	}
	n.waiters = still
	var errs []error
	for id, s := range n.sandboxes {
		if s.Leaving && s.change <= changes && ofPods[id] == nil {
			errs = append(errs, n.forget(s))
		}
	}
	return errors.Join(errs...)
}

// forget gives the addresses of a sandbox back, then removes its record: a
// crash in between repeats the first, which is harmless.
func (n *Network) forget(s *sandbox) error {
	if err := n.pool.Release(s.owner()); err != nil {
		return err
	}
	if err := n.store.remove(s.SandboxID); err != nil {
		return err
	}
	delete(n.sandboxes, s.SandboxID)
	return nil
}

func (s *sandbox) owner() ipam.Owner {
	return ipam.Owner{SandboxID: s.SandboxID, IfName: s.IfName, Pod: s.Name}
}

// waiter is a CNI call waiting for the pass that covers its change.
type waiter struct {
	sandboxID string
	change    uint64
	// isRemoval is content with any pass: what could not be removed is tried
	// again, but the runtime need not wait for that.
	isRemoval bool
	done      chan error // capacity one
}

// settle answers the waiter unless there is still hope: an error that is not
// of a single pod leaves open whether the sandbox is complete, so an ADD waits
// for the next try.
func (w waiter) settle(ofPod, other error) bool {
	if ofPod == nil && other != nil && !w.isRemoval {
		return false
	}
	w.done <- ofPod
	return true
}

// splitErrors separates the errors of single pods, by sandbox ID, from the
// rest of what Apply returned that concerns pods: neither a Service that the
// kernel does not take nor a leftover holds up any pod.
func splitErrors(err error) (ofPods map[string]error, other error) {
	ofPods = map[string]error{}
	var visit func(err, whole error)
	visit = func(err, whole error) {
		switch e := err.(type) { // not errors.As: a PodError may itself wrap several
		case nil:
		case *dataplane.PodError:
			ofPods[e.SandboxID] = errors.Join(ofPods[e.SandboxID], whole)
		case *dataplane.ServiceError, *dataplane.RemovalError:
		case interface{ Unwrap() []error }:
			for _, each := range e.Unwrap() {
				visit(each, each)
			}
		case interface{ Unwrap() error }:
			visit(e.Unwrap(), whole)
		default:
			other = errors.Join(other, whole)
		}
	}
	visit(err, err)
	return ofPods, other
}
