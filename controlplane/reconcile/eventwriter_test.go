package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// apiServer keeps Events. It may be slow, and refuse writes.
type apiServer struct {
	kubernetes.Interface
	typedcorev1.CoreV1Interface

	t      *testing.T
	events *Events

	mu                             sync.Mutex
	lag                            time.Duration           // of each write
	refuse                         func(name string) error // a write
	loses                          int                     // number of the write whose answer is lost
	writes, inFlight, mostInFlight int
	order                          []string // reasons of created Events
}

var errAway = errors.New("connection refused")

// withEvents runs test against an API server, with Events that are started.
func withEvents(t *testing.T, test func(t *testing.T, s *apiServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &apiServer{Interface: fake.NewSimpleClientset(), t: t}
		s.CoreV1Interface = s.Interface.CoreV1()
		s.events = NewEvents(s, "test-controller")
		s.events.start()
		test(t, s)
		s.events.stop()
	})
}

func (s *apiServer) CoreV1() typedcorev1.CoreV1Interface { return s }

func (s *apiServer) Events(namespace string) typedcorev1.EventInterface {
	return eventAPI{s.CoreV1Interface.Events(namespace), s}
}

type eventAPI struct {
	typedcorev1.EventInterface
	server *apiServer
}

func (a eventAPI) Create(ctx context.Context, e *corev1.Event, o metav1.CreateOptions) (*corev1.Event, error) {
	return a.server.write(ctx, e.Name, func() (*corev1.Event, error) {
		created, err := a.EventInterface.Create(ctx, e, o)
		if err == nil {
			a.server.order = append(a.server.order, e.Reason)
		}
		return created, err
	})
}

func (a eventAPI) Patch(ctx context.Context, name string, kind types.PatchType, data []byte, o metav1.PatchOptions, sub ...string) (*corev1.Event, error) {
	return a.server.write(ctx, name, func() (*corev1.Event, error) {
		return a.EventInterface.Patch(ctx, name, kind, data, o, sub...)
	})
}

func (s *apiServer) write(ctx context.Context, name string, do func() (*corev1.Event, error)) (*corev1.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	number := s.writes
	s.inFlight++
	defer func() { s.inFlight-- }()
	s.mostInFlight = max(s.mostInFlight, s.inFlight)
	if err := s.delay(ctx); err != nil {
		return nil, err
	}
	if s.refuse != nil {
		if err := s.refuse(name); err != nil {
			return nil, err
		}
	}
	event, err := do()
	if err == nil && number == s.loses {
		return nil, errors.New("connection reset")
	}
	return event, err
}

func (s *apiServer) delay(ctx context.Context) error {
	if s.lag == 0 {
		return nil
	}
	lag := time.After(s.lag)
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-lag:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isSlow has each write take so long from now on.
func (s *apiServer) isSlow(lag time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lag = lag
}

// refuses has f decide from now on which writes fail; nil means none.
func (s *apiServer) refuses(f func(name string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

// count returns how many writes there were, and at most at once.
func (s *apiServer) count() (all, atOnce int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes, s.mostInFlight
}

// list returns the Events, the oldest first.
func (s *apiServer) list() []corev1.Event {
	s.t.Helper()
	list, err := s.CoreV1Interface.Events("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	slices.SortFunc(list.Items, func(a, b corev1.Event) int { return cmp.Compare(a.Name, b.Name) })
	return list.Items
}

// want lets what runs settle, but no time pass, and compares the Events and how many writes they took.
func (s *apiServer) want(writes int, events ...string) {
	s.t.Helper()
	synctest.Wait()
	var have []string
	for _, e := range s.list() {
		have = append(have, fmt.Sprintf("%s x%d %s", e.Reason, e.Count, e.Message))
	}
	if !slices.Equal(have, events) {
		s.t.Errorf("Events are\n\t%s\nwant\n\t%s", strings.Join(have, "\n\t"), strings.Join(events, "\n\t"))
	}
	if n, _ := s.count(); n != writes {
		s.t.Errorf("%d writes, want %d", n, writes)
	}
}

func job(name string) *batchv1.Job {
	return &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name + "-uid"), ResourceVersion: "7"}}
}

// told is what want expects of the messages 1 ... n.
func told(reason string, n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("%s x1 pod %d", reason, i+1))
	}
	return list
}

func TestAFloodCostsFewWritesAndLosesNothing(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		for i := range 500 {
			s.events.Normal(job("web"), "Created", "pod %d", i+1)
		}
		s.want(10, told("Created", 10)...)
		time.Sleep(holdBack)
		s.want(11, append(told("Created", 10), "Created x490 (combined from similar events): pod 500")...)
		s.events.Normal(job("web"), "Created", "pod 501")
		s.want(11, append(told("Created", 10), "Created x490 (combined from similar events): pod 500")...)
		time.Sleep(holdBack)
		s.want(12, append(told("Created", 10), "Created x491 (combined from similar events): pod 501")...)
	})
}

func TestEqualEventsCostOneWriteASecond(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		begin := time.Now()
		s.events.Warning(job("web"), "Failed", "no")
		s.want(1, "Failed x1 no")
		for range 499 {
			s.events.Warning(job("web"), "Failed", "no")
		}
		s.want(1, "Failed x1 no")
		time.Sleep(holdBack)
		s.want(2, "Failed x500 no")
		for range 600 { // from 1 s to 42.93 s
			s.events.Warning(job("web"), "Failed", "no")
			time.Sleep(70 * time.Millisecond)
		}
		time.Sleep(holdBack)
		s.want(42, "Failed x1100 no") // one every 15 × 70 ms
		e := s.list()[0]
		if first, last := e.FirstTimestamp.Sub(begin), e.LastTimestamp.Sub(begin); first != 0 || last != 42*time.Second {
			t.Errorf("first %v, last %v after begin", first, last)
		}
	})
}

func TestAnotherReasonIsToldAtOnceDuringAFlood(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		for i := range 500 {
			s.events.Normal(job("web"), "Created", "pod %d", i+1)
		}
		s.events.Normal(job("web"), "Completed", "done")
		s.want(11, append(told("Created", 10), "Completed x1 done")...)
	})
}

func TestEventsOfOneObjectKeepTheirOrder(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.isSlow(50 * time.Millisecond)
		want := []string{"A", "B", "C", "D", "E", "F", "G", "H"}
		for _, reason := range want {
			s.events.Normal(job("web"), reason, "yes")
		}
		time.Sleep(s.lag * time.Duration(len(want)) * (1 + restOfWrite))
		synctest.Wait()
		if _, atOnce := s.count(); !slices.Equal(s.order, want) || atOnce != 1 {
			t.Errorf("written in the order %v, %d at once", s.order, atOnce)
		}
	})
}

func TestEventsYieldToOtherWorkOfABusyServer(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.isSlow(40 * time.Millisecond)
		for i := range 100 {
			s.events.Normal(job(fmt.Sprint("job-", i)), "Created", "a")
		}
		time.Sleep(9 * s.lag)
		synctest.Wait()
		if n, _ := s.count(); n > maxWriters*2 {
			t.Errorf("%d Events are written in the time of nine, want 2 by each writer", n)
		}
	})
}

func TestABusyServerIsToldOfSeveralMessagesByOneEvent(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.isSlow(600 * time.Millisecond)
		for i := range 8 {
			s.events.Normal(job("web"), "Created", "pod %d", i+1)
		}
		s.events.Normal(job("web"), "Completed", "done")
		time.Sleep(time.Minute)
		s.want(4, "Created x1 pod 1", "Created x1 pod 2", "Completed x1 done", "Created x6 (combined from similar events): pod 8")

		s.isSlow(0) // and an idle one of each again
		s.events.Normal(job("web"), "Created", "pod 3")
		s.want(5, "Created x1 pod 1", "Created x1 pod 2", "Completed x1 done", "Created x6 (combined from similar events): pod 8", "Created x1 pod 3")
	})
}

func TestLateMessagesTakeTheEventWithThemThatIsHeldBack(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.isSlow(2 * time.Second)
		for i := range 10 {
			s.events.Normal(job("web"), "Created", "pod %d", i+1)
		}
		time.Sleep(1900 * time.Millisecond)
		s.events.Normal(job("web"), "Created", "pod 11") // combined, and held back
		time.Sleep(time.Minute)
		s.want(2, "Created x1 pod 1", "Created x10 (combined from similar events): pod 11")
	})
}

func TestEventsOfSeveralObjectsAreWrittenAtOnce(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.isSlow(50 * time.Millisecond)
		for i := range 100 {
			s.events.Normal(job(fmt.Sprint("job-", i%50)), fmt.Sprint("Reason", i/50), "yes")
		}
		time.Sleep(s.lag * 100 / maxWriters * (1 + restOfWrite))
		synctest.Wait()
		if _, atOnce := s.count(); len(s.list()) != 100 || atOnce != maxWriters {
			t.Errorf("%d Events, %d were written at once", len(s.list()), atOnce)
		}
	})
}

func TestRepeatsWhileAnEventIsWrittenAreWrittenLater(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.isSlow(3 * time.Second)
		s.events.Normal(job("web"), "Created", "a")
		for range 5 {
			time.Sleep(time.Second / 2)
			s.events.Normal(job("web"), "Created", "a")
		}
		time.Sleep(time.Minute)
		s.want(2, "Created x6 a")
	})
}

func TestAnAPIServerThatIsAwayGetsAllEventsWhenItReturns(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.refuses(func(string) error { return errAway })
		for i := range 20 {
			s.events.Normal(job(fmt.Sprint("job-", i)), "Created", "a")
		}
		time.Sleep(time.Minute)
		if n, _ := s.count(); n > 8*maxWriters {
			t.Errorf("%d tries in a minute", n)
		}
		for i := range 20 {
			s.events.Normal(job(fmt.Sprint("job-", i)), "Created", "a")
		}
		s.refuses(nil)
		time.Sleep(retryDelay)
		synctest.Wait()
		for _, e := range s.list() {
			if e.Count != 2 {
				t.Errorf("%s is counted %d times", e.InvolvedObject.Name, e.Count)
			}
		}
		if n := len(s.list()); n != 20 {
			t.Errorf("%d Events", n)
		}
	})
}

func TestAnObjectWhoseEventsFailDoesNotKeepOthersWaitingForEver(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.refuses(func(name string) error {
			if strings.HasPrefix(name, "bad") {
				return errAway
			}
			return nil
		})
		for i := range maxWriters {
			s.events.Normal(job(fmt.Sprint("bad-", i)), "Created", "a")
		}
		s.events.Normal(job("web"), "Created", "a")
		s.want(maxWriters)
		time.Sleep(maxTries * retryDelay)
		s.want(maxTries*maxWriters+1, "Created x1 a")

		s.refuses(nil) // the next occurrence tells of those before it
		s.events.Normal(job("bad-0"), "Created", "a")
		time.Sleep(holdBack)
		s.want(maxTries*maxWriters+2, "Created x2 a", "Created x1 a")
	})
}

func TestWhichFailuresAreTriedAgain(t *testing.T) {
	events := corev1.Resource("events")
	terminating := apierrors.NewForbidden(events, "", errors.New("namespace is being terminated"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	cases := []struct {
		name  string
		err   error
		tries int
	}{
		{"the API server is away: yes", errAway, 2},
		{"it is overloaded: yes", apierrors.NewTooManyRequests("", 0), 2},
		{"it did not finish in time: yes", apierrors.NewTimeoutError("", 0), 2},
		{"it has no storage at the moment: yes", apierrors.NewServiceUnavailable(""), 2},
		{"the namespace is being deleted: no", terminating, 1},
		{"the namespace is gone: no", apierrors.NewNotFound(corev1.Resource("namespaces"), "ns"), 1},
		{"events are forbidden: no", apierrors.NewForbidden(events, "", nil), 1},
		{"a webhook fails: no", apierrors.NewInternalError(errors.New("webhook")), 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			withEvents(t, func(t *testing.T, s *apiServer) {
				s.refuses(func(string) error {
					if s.writes == 1 {
						return c.err
					}
					return nil
				})
				s.events.Normal(job("web"), "Created", "a")
				time.Sleep(time.Hour)
				synctest.Wait()
				if n, _ := s.count(); n != c.tries || len(s.list()) != n-1 {
					t.Errorf("%d tries, %d Events", n, len(s.list()))
				}
			})
		})
	}
}

func TestAnEventWhoseAnswerWasLostIsCountedExactly(t *testing.T) {
	for _, repeats := range []int{0, 1, 5} {
		withEvents(t, func(t *testing.T, s *apiServer) {
			s.loses = 1
			for range 1 + repeats {
				s.events.Normal(job("web"), "Created", "a")
			}
			time.Sleep(time.Minute)
			s.want(3, fmt.Sprintf("Created x%d a", 1+repeats)) // create, create, patch
		})
	}
}

func TestRepeatsBeforeARetryAreWrittenWithIt(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.refuses(func(string) error {
			if s.writes == 1 {
				return errAway
			}
			return nil
		})
		s.events.Normal(job("web"), "Created", "a")
		synctest.Wait()
		for range 5 {
			s.events.Normal(job("web"), "Created", "a")
		}
		time.Sleep(time.Minute)
		s.want(2, "Created x6 a")
	})
}

func TestAnEventThatExpiredIsMadeAnew(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.events.Normal(job("web"), "Created", "a")
		synctest.Wait()
		if err := s.CoreV1Interface.Events("ns").Delete(t.Context(), s.list()[0].Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		s.events.Normal(job("web"), "Created", "a")
		time.Sleep(holdBack)
		s.want(3, "Created x2 a")
		s.events.Normal(job("web"), "Created", "a")
		time.Sleep(holdBack)
		s.want(4, "Created x3 a")
	})
}

func TestNothingRunsWhenIdle(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		for i := range 100 {
			s.events.Normal(job("web"), "Created", "pod %d", i)
		}
		time.Sleep(holdBack)
		synctest.Wait()
		w := s.events.writer
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.timer != nil || w.writers != 0 || w.waiting != 0 || len(w.held)+len(w.turns)+len(w.lines) != 0 {
			t.Errorf("timer %v, %d writers, %d waiting, %d held, %d and %d lines", w.timer, w.writers, w.waiting, len(w.held), len(w.turns), len(w.lines))
		}
	})
}

func TestWhatWasRecordedBeforeStartIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &apiServer{Interface: fake.NewSimpleClientset(), t: t}
		s.CoreV1Interface = s.Interface.CoreV1()
		s.events = NewEvents(s, "test-controller")
		for i := range 12 {
			s.events.Normal(job("web"), "Created", "pod %d", i+1)
		}
		time.Sleep(time.Minute)
		s.want(0)
		s.events.start()
		time.Sleep(time.Millisecond)
		s.want(1, "Created x12 (combined from similar events): pod 12") // late as they are
		s.events.stop()
	})
}

func TestStopWritesWhatIsHeldBack(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		for i := range 500 {
			s.events.Normal(job("web"), "Created", "pod %d", i+1)
		}
		begin := time.Now()
		s.events.stop()
		s.want(11, append(told("Created", 10), "Created x490 (combined from similar events): pod 500")...)
		if took := time.Since(begin); took != 0 {
			t.Errorf("took %v", took)
		}
		s.events.Normal(job("web"), "Completed", "too late")
		time.Sleep(time.Minute)
		s.want(11, append(told("Created", 10), "Created x490 (combined from similar events): pod 500")...)
		s.events = NewEvents(s, "another") // which withEvents stops
	})
}

func TestStopDoesNotWaitForAnAPIServerThatIsAway(t *testing.T) {
	cases := []struct {
		name string
		do   func(s *apiServer)

		wantTime  time.Duration
		wantTries int
	}{
		{"it refuses", func(s *apiServer) { s.refuses(func(string) error { return errAway }) }, 0, 20},
		{"it does not answer", func(s *apiServer) { s.isSlow(time.Hour) }, flushTime, maxWriters},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			withEvents(t, func(t *testing.T, s *apiServer) {
				c.do(s)
				for i := range 20 {
					s.events.Normal(job(fmt.Sprint("job-", i)), "Created", "a")
				}
				synctest.Wait()
				begin := time.Now()
				s.events.stop()
				if took := time.Since(begin); took != c.wantTime {
					t.Errorf("took %v", took)
				}
				s.want(c.wantTries)
				s.events = NewEvents(s, "another") // which withEvents stops
			})
		})
	}
}

func TestTooManyUnwrittenEventsAreDroppedAndReported(t *testing.T) {
	logged := &strings.Builder{}
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.NewTextHandler(logged, nil)))
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.isSlow(time.Minute)
		const all = maxWriters + maxWaiting + 50
		for i := range all {
			s.events.Normal(job(fmt.Sprint("job-", i)), "Created", "a")
			if i < maxWriters {
				synctest.Wait() // until it is no longer in the queue
			}
		}
		if n := strings.Count(logged.String(), "events are dropped"); n != 1 {
			t.Errorf("%d log entries", n)
		}
		s.isSlow(0)
		time.Sleep(time.Minute + longestRest)
		synctest.Wait()
		if n := len(s.list()); n != all-50 {
			t.Errorf("%d Events", n)
		}
		s.events.Normal(job(fmt.Sprint("job-", all-1)), "Created", "a")
		time.Sleep(holdBack)
		synctest.Wait()
		if n := len(s.list()); n != all-49 {
			t.Errorf("%d Events when there is room again", n)
		}
	})
}

func TestManyGoroutinesMayRecord(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.isSlow(time.Millisecond)
		var recording sync.WaitGroup
		for range 16 {
			recording.Go(func() {
				for i := range 1000 {
					s.events.Normal(job(fmt.Sprint("job-", i%10)), "Created", "pod %d", i)
				}
			})
		}
		recording.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		total := 0
		for _, e := range s.list() {
			total += int(e.Count)
		}
		if events := len(s.list()); total != 16000 || events != 110 {
			t.Errorf("%d Events tell of %d occurrences", events, total)
		}
	})
}
