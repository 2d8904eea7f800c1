package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	// holdBack is how long an Event that is known already waits for more of
	// the same before it is written again. Times of Events are whole seconds,
	// so that no reader can tell the difference.
	holdBack = time.Second
	// maxWriters is how many Events of different objects are written at once.
	// client-go writes one at a time, which is too slow when thousands of pods
	// are made; many more would be in the way of those who make the pods.
	maxWriters = 4
	// A writer rests after each Event for restOfWrite times as long as that took,
	// longestRest at most, so that Events yield to the work they tell of when
	// the API server is busy, and are hardly late when it is not.
	restOfWrite = 4
	longestRest = 200 * time.Millisecond
	// Messages of one topic that have waited for condenseAfter share an Event
	// from then on, as those of a flood do: the API server is so busy that
	// telling each would be in the way.
	condenseAfter = time.Second
	// maxWaiting bounds the memory of Events that wait to be written, to some
	// MiB. Those beyond are dropped, which takes an API server that is away.
	maxWaiting = 10_000
	// maxTries and retryDelay are client-go's (k8s.io/client-go/tools/record/event.go).
	// The first delay is randomized, lest all clients of an API server that
	// was away return in the same moment.
	maxTries   = 12
	retryDelay = 10 * time.Second
	// flushTime is how long stop waits for what is still to be written.
	flushTime = 2 * time.Second
	// dropReports is the least time between two log entries on dropped events.
	dropReports = time.Minute
)

// eventWriter brings tallies to the API server. Goroutines and timers exist
// only while there is something to write.
//
// A tally waits in held, then in its object's line, then it is written. What
// is counted while it is written makes it wait again. The Events of one object
// are written one after the other, so that the API server gets them in order.
type eventWriter struct {
	client    kubernetes.Interface
	component string

	mu      sync.Mutex
	folding *folding
	held    []heldBack // until their time has come; the earliest first
	timer   *time.Timer
	lines   map[corev1.ObjectReference]*line
	turns   []*line // those which no writer works on; every line has something to write
	waiting int     // tallies in held and lines
	writers int

	dropped     int       // since the log last told of it
	droppedSaid time.Time // when it did
	unwritten   int       // given up because of stop

	isStarted, isStopped bool

	stopping chan struct{} // closed by stop
	running  sync.WaitGroup
	ctx      context.Context // of all writes
	cancel   context.CancelFunc
}

type heldBack struct {
	*tally
	until time.Time
}

// line holds the tallies of one object that are to be written now.
type line struct {
	about   corev1.ObjectReference
	tallies []*tally
}

func newEventWriter(client kubernetes.Interface, component string) *eventWriter {
	w := &eventWriter{
		client:    client,
		component: component,
		folding:   newFolding(),
		lines:     map[corev1.ObjectReference]*line{},
		stopping:  make(chan struct{}),
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// record counts an occurrence and sees to it that it is written.
func (w *eventWriter) record(o occurrence) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t, isNew := w.folding.fold(o)
	switch {
	case t.waiting || w.isStopped:
	case w.waiting == maxWaiting:
		w.drop(o.at)
	default:
		t.waiting = true
		w.waiting++
		if isNew {
			w.line(t)
		} else {
			w.hold(t, o.at.Add(holdBack))
		}
	}
}

// drop leaves an occurrence unwritten. It is counted: if there is another of
// the same when there is room again, both are written.
func (w *eventWriter) drop(now time.Time) {
	w.dropped++
	if now.Sub(w.droppedSaid) >= dropReports {
		w.log().Warn("events are dropped, too many wait to be written", "dropped", w.dropped)
		w.dropped, w.droppedSaid = 0, now
	}
}

func (w *eventWriter) log() *slog.Logger { return slog.With("controller", w.component) }

// hold has t wait for more occurrences.
func (w *eventWriter) hold(t *tally, until time.Time) {
	w.held = append(w.held, heldBack{t, until})
	w.setTimer()
}

func (w *eventWriter) setTimer() {
	if w.timer == nil && w.isStarted && len(w.held) > 0 {
		w.timer = time.AfterFunc(time.Until(w.held[0].until), w.release)
	}
}

// release puts into line what has been held back long enough.
func (w *eventWriter) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = nil
	w.releaseUntil(time.Now())
	w.setTimer()
}

func (w *eventWriter) releaseUntil(now time.Time) {
	for len(w.held) > 0 && !w.held[0].until.After(now) {
		w.line(w.held[0].tally)
		w.held = w.held[1:]
	}
}

// line has t written when those of the same object before it are.
func (w *eventWriter) line(t *tally) {
	l := w.lines[t.about]
	if l == nil {
		l = &line{about: t.about}
		w.lines[t.about] = l
		w.turns = append(w.turns, l)
		w.addWriter()
	}
	l.tallies = append(l.tallies, t)
}

func (w *eventWriter) addWriter() {
	if w.isStarted && w.writers < maxWriters {
		w.writers++
		w.running.Go(w.work)
	}
}

// start has all that was and will be recorded written.
func (w *eventWriter) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isStarted = true
	for range w.turns {
		w.addWriter()
	}
	w.setTimer()
}

// stop writes what waits, within flushTime, and returns when nothing runs any
// more. What is recorded from now on is not written.
func (w *eventWriter) stop() {
	w.mu.Lock()
	w.isStopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
	w.releaseUntil(time.Now().Add(holdBack))
	w.mu.Unlock()
	close(w.stopping)

	tooLate := time.AfterFunc(flushTime, w.cancel)
	w.running.Wait()
	tooLate.Stop()
	w.cancel()
	if n := w.waiting + w.unwritten; n > 0 {
		w.log().Warn("stopped before all events were written", "unwritten", n)
	}
}

// work writes until there is nothing to write.
func (w *eventWriter) work() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.turns) > 0 && w.ctx.Err() == nil {
		l := w.turns[0]
		w.turns = w.turns[1:]
		w.condense(l, time.Now())
		t := l.tallies[0]
		l.tallies = l.tallies[1:]
		t.waiting = false
		w.waiting--

		w.mu.Unlock()
		began := time.Now()
		w.write(t)
		w.pause(min(restOfWrite*time.Since(began), longestRest))
		w.mu.Lock()

		if len(l.tallies) > 0 {
			w.turns = append(w.turns, l)
		} else {
			delete(w.lines, l.about)
		}
	}
	w.writers--
}

// condense makes one Event of the messages of one topic that are late. It
// leaves the line something to write.
func (w *eventWriter) condense(l *line, now time.Time) {
	if len(l.tallies) < 2 {
		return
	}
	late := map[topic][]*tally{}
	for _, t := range l.tallies {
		if t.written == 0 && !t.combined && now.Sub(t.first) >= condenseAfter {
			late[t.topic] = append(late[t.topic], t)
		}
	}
	for _, list := range late {
		if len(list) < 2 {
			continue
		}
		l.tallies = slices.DeleteFunc(l.tallies, func(t *tally) bool { return slices.Contains(list, t) })
		w.waiting -= len(list)
		t := w.folding.condense(list)
		if !t.waiting {
			t.waiting = true
			w.waiting++
		} else if i := slices.IndexFunc(w.held, func(h heldBack) bool { return h.tally == t }); i >= 0 {
			w.held = slices.Delete(w.held, i, i+1)
		} else {
			continue // it is in line
		}
		l.tallies = append(l.tallies, t)
	}
}

// write writes all that t has counted, if need be with several tries. If it
// fails, the next occurrence will have it tried again.
func (w *eventWriter) write(t *tally) {
	for try := 1; ; try++ {
		w.mu.Lock()
		now := *t // with all that was counted since the last try
		w.mu.Unlock()
		if now.written == now.count {
			return
		}
		err := w.send(&now)
		switch {
		case err == nil:
			w.mu.Lock()
			t.written = now.count
			w.mu.Unlock()
			return
		case IsNamespaceTerminating(err), apierrors.IsNotFound(err): // then the namespace is gone
			w.log().Debug("an event has no namespace", "event", now.name, "reason", now.reason, "error", err)
			return
		case mayPass(err) && try < maxTries:
			if !w.pause(delayOf(try)) {
				w.mu.Lock()
				w.unwritten++
				w.mu.Unlock()
				return
			}
		default:
			w.log().Warn("cannot write an event", "event", now.name, "reason", now.reason, "message", now.latest, "tries", try, "error", err)
			return
		}
	}
}

// delayOf is how long to wait after a try that failed. The writer waits with
// it: so an API server that is away gets only maxWriters requests every ten
// seconds, however many Events there are.
func delayOf(try int) time.Duration {
	if try == 1 {
		return rand.N(retryDelay)
	}
	return retryDelay
}

// pause waits, unless stop has been called, and reports whether it was not.
func (w *eventWriter) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-w.stopping:
		return false
	}
}

// send makes the API server's Event equal to t.
func (w *eventWriter) send(t *tally) error {
	events := w.client.CoreV1().Events(t.namespace())
	if t.written > 0 {
		err := w.patch(t)
		if !apierrors.IsNotFound(err) {
			return err
		}
		// It has expired.
	}
	_, err := events.Create(w.ctx, t.event(w.component), metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) { // a try before succeeded, but its answer was lost
		err = w.patch(t)
	}
	return err
}

// patch writes what changes in an Event.
func (w *eventWriter) patch(t *tally) error {
	change := struct {
		Count         int32       `json:"count"`
		LastTimestamp metav1.Time `json:"lastTimestamp"`
		Message       string      `json:"message"`
	}{t.count, metav1.NewTime(t.last), t.latest}
	data, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = w.client.CoreV1().Events(t.namespace()).Patch(w.ctx, t.name, types.MergePatchType, data, metav1.PatchOptions{})
	return err
}

// mayPass reports whether what failed with err may succeed later. Unlike
// client-go, an API server that says it is overloaded is asked again.
func mayPass(err error) bool {
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		return apierrors.IsTooManyRequests(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err)
	}
	_, isMalformed := errors.AsType[*rest.RequestConstructionError](err)
	return !isMalformed
}
