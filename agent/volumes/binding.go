package volumes

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// A node hears that a pod is bound to it at the same time as the API server's own informers do: the Node authorizer and
// NodeRestriction may refuse what the pod needs because, for them, it runs elsewhere or does not exist yet. So a refusal counts
// only when it outlasts these delays.
const (
	firstRefusalDelay = 10 * time.Millisecond
	maxRefusals       = 8 // 10 ms, 20 ms, … 1.28 s: 2.55 s
)

// onceBound repeats a request about a pod while the API server may not know yet that the pod is on this node.
func onceBound[T any](ctx context.Context, request func() (T, error)) (T, error) {
	delay := firstRefusalDelay
	for refusals := 1; ; refusals++ {
		value, err := request()
		if !isRefusal(err) || refusals > maxRefusals {
			return value, err
		}
		select {
		case <-ctx.Done():
			return value, err
		case <-time.After(delay):
		}
		delay *= 2
	}
}

// isRefusal reports whether the API server does not know the pod, or refuses what only a node with the pod may have.
func isRefusal(err error) bool {
	if apierrors.IsForbidden(err) {
		return true
	}
	status, ok := err.(apierrors.APIStatus)
	return ok && apierrors.IsNotFound(err) && status.Status().Details != nil && status.Status().Details.Kind == "pods"
}
