package reconcile

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// Events tells users what a controller did to an object. Equal events are
// counted on one object, floods are dropped. It may be used by many
// goroutines; writes happen in the background between start and stop.
type Events struct {
	client      kubernetes.Interface
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
}

// NewEvents makes the events of one controller; component is their source.
func NewEvents(client kubernetes.Interface, component string) *Events {
	broadcaster := record.NewBroadcaster()
	return &Events{
		client:      client,
		broadcaster: broadcaster,
		recorder:    broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component}),
	}
}

// Normal reports progress on object.
func (e *Events) Normal(object runtime.Object, reason, format string, args ...any) {
	e.recorder.Eventf(object, corev1.EventTypeNormal, reason, format, args...)
}

// Warning reports what a user may have to act upon.
func (e *Events) Warning(object runtime.Object, reason, format string, args ...any) {
	e.recorder.Eventf(object, corev1.EventTypeWarning, reason, format, args...)
}

func (e *Events) start() {
	e.broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: e.client.CoreV1().Events("")})
}

func (e *Events) stop() { e.broadcaster.Shutdown() }

// Recorder is for libraries that record events themselves.
func (e *Events) Recorder() record.EventRecorder { return e.recorder }
