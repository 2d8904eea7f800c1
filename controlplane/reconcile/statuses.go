package reconcile

import (
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Statuses writes the statuses of a controller's objects. Counts on their way
// to a goal, while many pods are made or become ready, share a write; what ends
// a change, or tells of a failure, is written at once.
type Statuses struct {
	// AddAfter has an object looked at again; it is the Loop's.
	AddAfter func(key types.NamespacedName, d time.Duration)
	Fence    *Fence
	Store    Store // of the objects' informer
	// ForPeople says that no other controller waits for these counts, so that
	// they may be held back for longer.
	ForPeople bool

	pace pace
}

// News says what a status has to tell.
type News int

const (
	// NoNews is a status as it is stored.
	NoNews News = iota
	// Counts may wait for others.
	Counts
	// Urgent news must not wait.
	Urgent
)

// After returns n as it is after a step that has failed, or not. When it has,
// counts must not wait: that would have the object tried again before its
// back-off is over.
func (n News) After(failed bool) News {
	if failed && n == Counts {
		return Urgent
	}
	return n
}

// Write calls write, which returns the object as it was written, if there is
// news; news that may wait has the object looked at again when it must
// wait no longer. That the object is gone is no error.
func (s *Statuses) Write(key types.NamespacedName, news News, write func() (metav1.Object, error)) error {
	begin := time.Now()
	switch news {
	case NoNews:
		s.pace.forget(key)
		return nil
	case Counts:
		if wait := s.pace.hold(key, begin, s.ForPeople); wait > 0 {
			s.AddAfter(key, wait)
			return nil
		}
	}
	written, err := write()
	s.pace.wrote(key, time.Since(begin))
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("update status: %w", err)
	}
	s.Fence.Wrote(key, s.Store, written.GetResourceVersion())
	return nil
}

// Forget drops what is known of an object that is gone.
func (s *Statuses) Forget(key types.NamespacedName) { s.pace.forget(key) }
