package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

func holder(t *testing.T, client kubernetes.Interface) string {
	t.Helper()
	l, err := client.CoordinationV1().Leases("kube-system").Get(t.Context(), "work", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return *l.Spec.HolderIdentity
}

func server(identity string) lease {
	return lease{name: "work", identity: identity, log: slog.New(slog.DiscardHandler)}
}

func TestALeaseIsGivenUpOnlyWhenWorkHasStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- server("a").term(ctx, client, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(time.Minute) // a slow stop, longer than the lease lasts
				if got := holder(t, client); got != "a" {
					t.Errorf("the lease is held by %q while a still works", got)
				}
				return nil
			})
		}()
		synctest.Wait()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := holder(t, client); got != "" {
			t.Errorf("the lease is still held by %q", got)
		}
	})
}

func TestARestartedServerHasItsLeaseBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		if err := heldBy(t.Context(), client, "a"); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		ctx, stop := context.WithCancel(t.Context())
		err := server("a").term(ctx, client, func(context.Context) error {
			stop()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took >= retryPeriod {
			t.Errorf("took %s", took)
		}
	})
}

// heldBy makes the lease as a server leaves it that is killed just now.
func heldBy(ctx context.Context, client kubernetes.Interface, identity string) error {
	now := metav1.NowMicro()
	seconds := int32(leaseDuration / time.Second)
	_, err := client.CoordinationV1().Leases("kube-system").Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: "work", Namespace: "kube-system"},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity:       &identity,
			LeaseDurationSeconds: &seconds,
			AcquireTime:          &now,
			RenewTime:            &now,
		},
	}, metav1.CreateOptions{})
	return err
}

func TestAnotherServerTakesOverWhenTheLeaderDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		if err := heldBy(t.Context(), client, "a"); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		ctx, stop := context.WithCancel(t.Context())
		err := server("b").term(ctx, client, func(context.Context) error {
			stop()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took < leaseDuration || took > leaseDuration+2*retryPeriod {
			t.Errorf("took over after %s, while the lease lasts %s", took, leaseDuration)
		}
	})
}

func TestFailedWorkIsReportedAndTheLeaseGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		broken := errors.New("broken")
		err := server("a").term(t.Context(), client, func(context.Context) error { return broken })
		if !errors.Is(err, broken) {
			t.Errorf("error %v, want %v", err, broken)
		}
		if got := holder(t, client); got != "" {
			t.Errorf("the lease is still held by %q", got)
		}
	})
}

func TestAStopBeforeLeadingDoesNoWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		if err := heldBy(t.Context(), client, "a"); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		err := server("b").term(ctx, client, func(context.Context) error {
			t.Error("worked")
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
