package volumes

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
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
