package reconcile

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

func TestNewsThatMayWaitSharesAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := types.NamespacedName{Namespace: "ns", Name: "a"}
		var wrote int
		var again time.Duration
		s := Statuses{
			AddAfter: func(_ types.NamespacedName, d time.Duration) { again = d },
			Fence:    &Fence{},
			Store:    new(storeAt("1")),
		}
		write := func(news News, answer error) error {
			return s.Write(key, news, func() (metav1.Object, error) { wrote++; return &metav1.ObjectMeta{ResourceVersion: "5"}, answer })
		}
		expect := func(what string, err error, wantWrites int, wantAgain time.Duration) {
			t.Helper()
			if err != nil || wrote != wantWrites || again != wantAgain {
				t.Errorf("%s: %d writes, want %d; looks again after %s, want %s; %v", what, wrote, wantWrites, again, wantAgain, err)
			}
			again = 0
		}
		expect("nothing has changed", write(NoNews, nil), 0, 0)
		expect("a count has changed", write(Counts, nil), 0, shortestHold)
		time.Sleep(shortestHold / 2)
		expect("another count has changed", write(Counts, nil), 0, shortestHold/2)
		time.Sleep(shortestHold / 2)
		expect("they have waited long enough", write(Counts, nil), 1, 0)
		if err := s.Fence.Check(key); !errors.Is(err, ErrStale) {
			t.Errorf("the fence does not know of the write: %v", err)
		}
		expect("the next count has changed", write(Counts, nil), 1, shortestHold)
		expect("the goal is reached", write(Urgent, nil), 2, 0)
		expect("the object is gone", write(Urgent, apierrors.NewNotFound(schema.GroupResource{}, "a")), 3, 0)
		if err := write(Urgent, errors.New("refused")); err == nil || err.Error() != "update status: refused" {
			t.Errorf("got error %v", err)
		}
	})
}
