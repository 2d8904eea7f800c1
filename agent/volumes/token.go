package volumes

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	// defaultTokenSeconds is the life of a token if its volume does not say (the API server sets it).
	defaultTokenSeconds = int64(3600)
	// maxTokenAge is when a token is replaced, however long it would be valid.
	maxTokenAge = 24 * time.Hour
	// tokenRetry is when a replacement that failed is tried again.
	tokenRetry = 10 * time.Second
)

// tokens requests service account tokens for pods and keeps them until they need to be replaced: at 80 % of their life, as
// kubelet does (kubernetes/pkg/kubelet/token). A token is bound to its pod and dies with it.
type tokens struct {
	client kubernetes.Interface
	log    *slog.Logger

	mu    sync.Mutex
	known map[tokenKey]token
}

type tokenKey struct {
	podUID   types.UID
	account  string
	audience string
	seconds  int64
}

type token struct {
	value            string
	renewAt, expires time.Time
}

// get returns a valid token, a new one if it is time. A token that cannot be replaced is used as long as it is valid.
func (t *tokens) get(ctx context.Context, pod *corev1.Pod, source *corev1.ServiceAccountTokenProjection) (string, error) {
	key := keyOf(pod, source)
	t.mu.Lock()
	old, ok := t.known[key]
	t.mu.Unlock()
	now := time.Now()
	if ok && now.Before(old.renewAt) {
		return old.value, nil
	}
	fresh, err := t.request(ctx, pod, key)
	if err != nil {
		if !ok || !now.Before(old.expires) {
			return "", fmt.Errorf("failed to fetch token: %w", err)
		}
		t.log.Warn("cannot renew service account token", "pod", pod.Namespace+"/"+pod.Name, "err", err)
		old.renewAt = now.Add(tokenRetry)
		fresh = old
	}
	t.mu.Lock()
	t.known[key] = fresh
	t.mu.Unlock()
	return fresh.value, nil
}

func (t *tokens) request(ctx context.Context, pod *corev1.Pod, key tokenKey) (token, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &key.seconds,
		BoundObjectRef: &authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID,
		},
	}}
	if key.audience != "" {
		request.Spec.Audiences = []string{key.audience}
	}
	now := time.Now()
	granted, err := onceBound(ctx, func() (*authenticationv1.TokenRequest, error) {
		return t.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, key.account, request, metav1.CreateOptions{})
	})
	if err != nil {
		return token{}, err
	}
	expires := granted.Status.ExpirationTimestamp.Time
	// The server may grant a longer life than was asked for (--service-account-extend-token-expiration), yet wants it replaced
	// by the time that was asked for.
	life := min(expires.Sub(now), time.Duration(key.seconds)*time.Second)
	return token{
		value:   granted.Status.Token,
		renewAt: now.Add(min(life*8/10, maxTokenAge)),
		expires: expires,
	}, nil
}

// nextRenewal is when the first of a pod's tokens needs to be replaced; ok is false if it has none.
func (t *tokens) nextRenewal(podUID types.UID) (at time.Time, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, known := range t.known {
		if key.podUID == podUID && (!ok || known.renewAt.Before(at)) {
			at, ok = known.renewAt, true
		}
	}
	return at, ok
}

// forget drops a pod's tokens.
func (t *tokens) forget(podUID types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.known {
		if key.podUID == podUID {
			delete(t.known, key)
		}
	}
}

func keyOf(pod *corev1.Pod, source *corev1.ServiceAccountTokenProjection) tokenKey {
	key := tokenKey{podUID: pod.UID, account: pod.Spec.ServiceAccountName, audience: source.Audience, seconds: defaultTokenSeconds}
	if key.account == "" {
		key.account = "default"
	}
	if source.ExpirationSeconds != nil {
		key.seconds = *source.ExpirationSeconds
	}
	return key
}
