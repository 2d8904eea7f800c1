package job

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// statusPeriod is how often a status is written of which only numbers change.
const statusPeriod = time.Second

// memory is what the controller knows of a Job that the API does not hold.
// To lose it costs time, not correctness.
type memory struct {
	uid      types.UID
	backoff  backoff
	reported time.Time // when the status was written last
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
