package pods

import (
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What the rest of the agent, first of all the node API, sees of pods.

// Pods lists the pods of this node as the agent sees them now, their status
// included. The caller may change what it gets.
func (m *Manager) Pods() []*corev1.Pod {
	m.mu.Lock()
	workers := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		workers = append(workers, w)
	}
	m.mu.Unlock()
	var out []*corev1.Pod
	for _, w := range workers {
		if pod := w.view(); pod != nil {
			out = append(out, pod)
		}
	}
	return out
}

// Pod returns one pod as Pods does.
func (m *Manager) Pod(namespace, name string) (*corev1.Pod, bool) {
	pods := m.Pods()
	i := slices.IndexFunc(pods, func(p *corev1.Pod) bool { return p.Namespace == namespace && p.Name == name })
	if i < 0 {
		return nil, false
	}
	return pods[i], true
}

// Container is one container of a pod, of any kind, for logs and exec.
type Container struct {
	ID, SandboxID string
	// State is "created", "running", "exited" or "unknown".
	State string
	// LogPath is absolute; PreviousLogPath too, "" if there was no instance
	// before.
	LogPath, PreviousLogPath string
}

// Container returns the newest instance of a container of a pod.
func (m *Manager) Container(podUID types.UID, name string) (Container, bool) {
	w := m.worker(podUID)
	if w == nil {
		return Container{}, false
	}
	return w.container(name)
}

// view is the pod with the status that the agent sees, nil for pods that the
// API server does not know.
func (w *worker) view() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		return nil
	}
	pod := w.pod.DeepCopy()
	if w.status != nil {
		w.status.DeepCopyInto(&pod.Status)
	}
	return pod
}

// container finds the newest instance of a container.
func (w *worker) container(name string) (Container, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.observed.containers[name]
	if len(list) == 0 {
		return Container{}, false
	}
	out := Container{ID: list[0].id, SandboxID: list[0].sandboxID, State: list[0].state.String(), LogPath: w.logFile(list[0])}
	if len(list) > 1 {
		out.PreviousLogPath = w.logFile(list[1])
	}
	return out, true
}

func (w *worker) logFile(c container) string {
	if filepath.IsAbs(c.logPath) {
		return c.logPath
	}
	return filepath.Join(w.m.node.podLogDir(w.pod), logPath(c.name, c.restartCount))
}
