package reconcile

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/record/util"
	"k8s.io/client-go/tools/reference"
	"k8s.io/utils/lru"
)

// Events tells users what a controller did to an object.
//
//	Normal, Warning ──fold──► tally of one Event ─┬─ first time: now ───────┬─► writers ─► API server
//	                                              └─ again: held back 1 s ──┘
//
// Equal events are counted on one Event. Of a flood of events that differ only
// in their message, the first ten are written one by one and the others are
// counted on one more Event, which shows the latest message. So a flood costs
// few writes, its count is exact, and other reasons are as visible as ever. When
// the API server is so busy that messages wait for a second, those that
// differ only in that way share one Event, too.
//
// It may be used by many goroutines and never blocks them: writes happen in
// the background between start and stop.
type Events struct {
	writer *eventWriter
}

// NewEvents makes the events of one controller; component is their source.
func NewEvents(client kubernetes.Interface, component string) *Events {
	return &Events{writer: newEventWriter(client, component)}
}

// Normal reports progress on object.
func (e *Events) Normal(object runtime.Object, reason, format string, args ...any) {
	e.record(object, nil, corev1.EventTypeNormal, reason, fmt.Sprintf(format, args...))
}

// Warning reports what a user may have to act upon.
func (e *Events) Warning(object runtime.Object, reason, format string, args ...any) {
	e.record(object, nil, corev1.EventTypeWarning, reason, fmt.Sprintf(format, args...))
}

// Recorder is for libraries that record events themselves.
func (e *Events) Recorder() record.EventRecorder { return recorder{e} }

func (e *Events) start() { e.writer.start() }

func (e *Events) stop() { e.writer.stop() }

func (e *Events) record(object runtime.Object, annotations map[string]string, severity, reason, message string) {
	about, err := reference.GetReference(scheme.Scheme, object)
	if err == nil && !util.ValidateEventType(severity) {
		err = fmt.Errorf("no such type of event: %q", severity)
	}
	if err != nil {
		slog.Error("cannot record an event", "controller", e.writer.component, "reason", reason, "message", message, "error", err)
		return
	}
	e.writer.record(occurrence{about: *about, severity: severity, reason: reason, message: message, annotations: annotations, at: time.Now()})
}

// recorder lets Events pass for client-go's recorder.
type recorder struct{ events *Events }

func (r recorder) Event(object runtime.Object, severity, reason, message string) {
	r.events.record(object, nil, severity, reason, message)
}

func (r recorder) Eventf(object runtime.Object, severity, reason, format string, args ...any) {
	r.events.record(object, nil, severity, reason, fmt.Sprintf(format, args...))
}

func (r recorder) AnnotatedEventf(object runtime.Object, annotations map[string]string, severity, reason, format string, args ...any) {
	r.events.record(object, annotations, severity, reason, fmt.Sprintf(format, args...))
}

// Limits of folding. All but the first are client-go's
// (k8s.io/client-go/tools/record/events_cache.go), where already the tenth
// message is combined.
const (
	maxMessages      = 10               // of one topic that get Events of their own ...
	messageWindow    = 10 * time.Minute // ... until the topic was quiet for so long
	maxRemembered    = 4096             // topics, and also tallies
	combinedMessages = "(combined from similar events): "
)

// occurrence is what a controller reports at one time.
type occurrence struct {
	about                     corev1.ObjectReference
	severity, reason, message string
	annotations               map[string]string
	at                        time.Time
}

// topic is what the occurrences of a flood have in common. Its object has no
// resourceVersion, which changes all the time.
type topic struct {
	about            corev1.ObjectReference
	severity, reason string
}

// tallyKey says which occurrences one Event tells of: those of this very
// message, or else those of the messages beyond the first ten.
type tallyKey struct {
	topic
	message  string
	combined bool
}

// tally is what one Event object tells, or is about to tell.
type tally struct {
	tallyKey
	name        string
	version     string // of the object, when the Event was made
	annotations map[string]string
	first, last time.Time
	count       int32
	latest      string // message, with combinedMessages in front if combined

	written int32 // count that the API server has; 0 if it has no such Event
	waiting bool  // until it is written
}

// folding decides which occurrence is told by which Event. It is not safe for
// concurrent use.
type folding struct {
	recent   *lru.Cache // topic → *messages
	tallies  *lru.Cache // tallyKey → *tally
	lastName int64
}

// messages are those of a topic that have Events of their own.
type messages struct {
	told []string
	last time.Time
}

func newFolding() *folding {
	return &folding{recent: lru.New(maxRemembered), tallies: lru.New(maxRemembered)}
}

// fold counts o and returns the tally that it belongs to, and whether its
// Event tells users something new, so that it should be written without delay.
func (f *folding) fold(o occurrence) (t *tally, isNew bool) {
	key := f.keyOf(o)
	t, isKnown := f.tallyOf(key, o.about.ResourceVersion, o.at)
	if !isKnown && !key.combined {
		t.annotations = o.annotations
	}
	t.count++
	t.last, t.latest = o.at, o.message
	if key.combined {
		t.latest = combinedMessages + o.message
	}
	return t, t.count == 1 && !key.combined
}

// condense moves what tallies of one topic count, of which none is written yet,
// to the one of its combined messages, and returns that.
func (f *folding) condense(list []*tally) *tally {
	first := list[0]
	t, isKnown := f.tallyOf(tallyKey{topic: first.topic, combined: true}, first.version, first.first)
	for _, old := range list {
		f.tallies.Remove(old.tallyKey)
		t.count += old.count
		if !isKnown || old.last.After(t.last) {
			t.last, t.latest = old.last, combinedMessages+old.latest
		}
	}
	return t
}

// tallyOf returns the tally of a key, and whether there was one; a new one
// tells of version of the object and begins at first.
func (f *folding) tallyOf(key tallyKey, version string, first time.Time) (t *tally, isKnown bool) {
	if known, ok := f.tallies.Get(key); ok {
		return known.(*tally), true
	}
	t = &tally{tallyKey: key, name: f.nameFor(key.about.Name, first), version: version, first: first}
	f.tallies.Add(key, t)
	return t, false
}

func (f *folding) keyOf(o occurrence) tallyKey {
	key := tallyKey{topic: topic{about: o.about, severity: o.severity, reason: o.reason}, message: o.message}
	key.about.ResourceVersion = ""
	var m *messages
	if known, ok := f.recent.Get(key.topic); ok {
		m = known.(*messages)
	} else {
		m = &messages{}
		f.recent.Add(key.topic, m)
	}
	if o.at.Sub(m.last) > messageWindow {
		m.told = nil
	}
	m.last = o.at
	switch {
	case slices.Contains(m.told, o.message):
	case len(m.told) < maxMessages:
		m.told = append(m.told, o.message)
	default:
		key.message, key.combined = "", true
	}
	return key
}

// nameFor makes a name as client-go does, from the time; but never the same
// one twice.
func (f *folding) nameFor(object string, at time.Time) string {
	f.lastName = max(f.lastName+1, at.UnixNano())
	return util.GenerateEventName(object, f.lastName)
}

// event is the whole Event object.
func (t *tally) event(component string) *corev1.Event {
	about := t.about
	about.ResourceVersion = t.version
	return &corev1.Event{
		ObjectMeta:          metav1.ObjectMeta{Name: t.name, Namespace: t.namespace(), Annotations: t.annotations},
		InvolvedObject:      about,
		Type:                t.severity,
		Reason:              t.reason,
		Message:             t.latest,
		Source:              corev1.EventSource{Component: component},
		ReportingController: component,
		FirstTimestamp:      metav1.NewTime(t.first),
		LastTimestamp:       metav1.NewTime(t.last),
		Count:               t.count,
	}
}

// namespace is where the Event lives: that of its object, or "default" if the
// object has none.
func (t *tally) namespace() string {
	if t.about.Namespace == "" {
		return metav1.NamespaceDefault
	}
	return t.about.Namespace
}
