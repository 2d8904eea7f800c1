package pods

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/agent/probes"
)

// runHook runs a postStart or preStop hook to its end.
func (w *worker) runHook(ctx context.Context, pod *corev1.Pod, c *corev1.Container, id string, ips []string, hook *corev1.LifecycleHandler) error {
	switch {
	case hook.Exec != nil:
		code, output, err := w.m.cfg.Runtime.ExecSync(ctx, id, hook.Exec.Command, 0)
		if err == nil && code != 0 {
			err = fmt.Errorf("command exited with %d: %s", code, output)
		}
		return err
	case hook.HTTPGet != nil:
		ip := ""
		if len(ips) > 0 {
			ip = ips[0]
		}
		return probes.RunHTTPHook(ctx, hook.HTTPGet, c, ip)
	case hook.Sleep != nil:
		select {
		case <-time.After(time.Duration(hook.Sleep.Seconds) * time.Second):
			return nil
		case <-ctx.Done():
			return errors.New("container terminated before sleep hook finished")
		}
	}
	return errors.New("lifecycle hook names no exec, httpGet or sleep; tcpSocket is not supported")
}

// preStop runs a container's preStop hook for at most grace and returns what
// is left of it.
func (w *worker) preStop(ctx context.Context, pod *corev1.Pod, c *corev1.Container, id string, ips []string, grace time.Duration) time.Duration {
	if c == nil || c.Lifecycle == nil || c.Lifecycle.PreStop == nil || grace <= 0 {
		return grace
	}
	begun := time.Now()
	bounded, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := w.runHook(bounded, pod, c, id, ips, c.Lifecycle.PreStop); err != nil && bounded.Err() == nil {
		// The message may hold secrets: it goes to the log, not to the event.
		w.log.Info("preStop hook failed", "container", c.Name, "err", err)
		w.warn(pod, c, eventFailedPreStopHook, "PreStopHook failed")
	}
	return grace - time.Since(begun)
}
