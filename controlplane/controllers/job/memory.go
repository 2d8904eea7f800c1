package job

import (
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// statusPeriod is how often a status is written of which only numbers change.
const statusPeriod = time.Second

// memory is what the controller knows of a Job that the API does not hold.
// To lose it costs time, not correctness.
type memory struct {
	uid      types.UID
	backoff  backoff
	start    *metav1.Time // of a Job that has no status yet
	reported time.Time    // when the status was written last
}

// begun returns job with the start time that its first status will have.
func (m memory) begun(job *batchv1.Job) *batchv1.Job {
	if !isNew(job) || m.start == nil {
		return job
	}
	begun := *job
	begun.Status.StartTime = m.start
	return &begun
}

// memories holds the memory of each Job.
type memories struct {
	mu    sync.Mutex
	byKey map[types.NamespacedName]memory
}

// of returns an empty memory for a Job that replaced another of its name.
func (m *memories) of(key types.NamespacedName, uid types.UID) memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known := m.byKey[key]; known.uid == uid {
		return known
	}
	return memory{uid: uid}
}

func (m *memories) keep(key types.NamespacedName, known memory) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byKey == nil {
		m.byKey = map[types.NamespacedName]memory{}
	}
	m.byKey[key] = known
}

func (m *memories) forget(key types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byKey, key)
}
