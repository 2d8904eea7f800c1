package volumes

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// issuer grants tokens that live as long as it likes, or refuses.
type issuer struct {
	tokens
	lifetime time.Duration
	refusing bool
	refusals []error // for the next requests
	granted  int
}

func newIssuer(lifetime time.Duration) *issuer {
	client := fake.NewClientset()
	i := &issuer{lifetime: lifetime}
	i.tokens = tokens{client: client, log: slog.New(slog.DiscardHandler), known: map[tokenKey]token{}}
	client.PrependReactor("create", "serviceaccounts", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if i.refusing {
			return true, nil, fmt.Errorf("refused")
		}
		if len(i.refusals) > 0 {
			err := i.refusals[0]
			i.refusals = i.refusals[1:]
			return true, nil, err
		}
		i.granted++
		request := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest).DeepCopy()
		request.Status.Token = fmt.Sprint("token ", i.granted)
		request.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(i.lifetime))
		return true, request, nil
	})
	return i
}

func (i *issuer) now(t *testing.T) string {
	t.Helper()
	value, err := i.get(t.Context(), podWith(), &corev1.ServiceAccountTokenProjection{ExpirationSeconds: ptr(int64(3600))})
	if err != nil {
		return err.Error()
	}
	return value
}

func TestTokensAreRenewedAtFourFifthsOfTheirLife(t *testing.T) {
	for title, test := range map[string]struct {
		granted, renewed time.Duration
	}{
		"as long as asked for":                                    {time.Hour, 48 * time.Minute},
		"shorter than asked for":                                  {10 * time.Minute, 8 * time.Minute},
		"a server that extends it still wants it renewed in time": {365 * 24 * time.Hour, 48 * time.Minute},
	} {
		t.Run(title, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := newIssuer(test.granted)
				i.now(t)
				time.Sleep(test.renewed - 2*time.Second)
				if got := i.now(t); got != "token 1" {
					t.Errorf("before it is time: %s", got)
				}
				time.Sleep(2 * time.Second)
				if got := i.now(t); got != "token 2" {
					t.Errorf("when it is time: %s", got)
				}
			})
		})
	}
}

func TestATokenThatCannotBeRenewedIsUsedToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(time.Hour)
		i.now(t)
		i.refusing = true
		time.Sleep(50 * time.Minute)
		if got := i.now(t); got != "token 1" {
			t.Errorf("while valid: %s", got)
		}
		if at, ok := i.nextRenewal(podWith().UID); !ok || time.Until(at) != tokenRetry {
			t.Errorf("tried again in %s", time.Until(at))
		}
		time.Sleep(10 * time.Minute)
		if got := i.now(t); got != "failed to fetch token: refused" {
			t.Errorf("once expired: %s", got)
		}
		i.refusing = false
		if got := i.now(t); got != "token 2" {
			t.Errorf("once granted again: %s", got)
		}
	})
}

func TestForgottenPodsHaveNoTokens(t *testing.T) {
	i := newIssuer(time.Hour)
	i.now(t)
	i.forget(podWith().UID)
	if _, ok := i.nextRenewal(podWith().UID); ok {
		t.Error("a renewal is still due")
	}
	if got := i.now(t); got != "token 2" {
		t.Errorf("got %s", got)
	}
}

func TestARefusalCountsOnlyOnceTheServerKnowsTheBinding(t *testing.T) {
	elsewhere := apierrors.NewForbidden(corev1.Resource("serviceaccounts"), "default", errors.New("node requested token bound to a pod scheduled on a different node"))
	unknown := apierrors.NewNotFound(corev1.Resource("pods"), "web")
	for title, test := range map[string]struct {
		refusals []error
		want     string
		within   time.Duration
	}{
		"the pod runs elsewhere, for a moment":     {[]error{elsewhere, elsewhere, elsewhere}, "token 1", 100 * time.Millisecond},
		"the pod does not exist, for a moment":     {[]error{unknown, elsewhere}, "token 1", 100 * time.Millisecond},
		"the pod runs elsewhere for good":          {slices.Repeat([]error{elsewhere}, 100), "failed to fetch token: " + elsewhere.Error(), 3 * time.Second},
		"the account does not exist":               {[]error{apierrors.NewNotFound(corev1.Resource("serviceaccounts"), "default")}, `failed to fetch token: serviceaccounts "default" not found`, 0},
		"another error is for the caller to judge": {[]error{errors.New("connection refused")}, "failed to fetch token: connection refused", 0},
	} {
		t.Run(title, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := newIssuer(time.Hour)
				i.refusals = test.refusals
				begin := time.Now()
				if got := i.now(t); got != test.want {
					t.Errorf("got %s, want %s", got, test.want)
				}
				if took := time.Since(begin); took > test.within {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}
