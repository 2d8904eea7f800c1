package reconcile

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Deletions remembers, per owner, the pods whose deletion the API server has
// accepted but the cache does not show yet. (A delete is not answered with a
// resourceVersion, so a Fence cannot wait for it.) An accepted deletion is
// final, so a decision may count such a pod as terminating at once.
// The zero value is ready for use.
type Deletions struct {
	mu   sync.Mutex
	sent map[types.NamespacedName]map[types.UID]struct{}
}

// Sent records that the deletion of pod was accepted.
func (d *Deletions) Sent(owner types.NamespacedName, pod types.UID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sent == nil {
		d.sent = map[types.NamespacedName]map[types.UID]struct{}{}
	}
	if d.sent[owner] == nil {
		d.sent[owner] = map[types.UID]struct{}{}
	}
	d.sent[owner][pod] = struct{}{}
}

// Overlay returns the owner's cached pods, with those that are known to be
// deleted shown as terminating since now. It forgets what the cache has
// caught up with, so pods must be all that the cache holds for owner.
func (d *Deletions) Overlay(owner types.NamespacedName, pods []*corev1.Pod, now time.Time) []*corev1.Pod {
	d.mu.Lock()
	defer d.mu.Unlock()
	sent := d.sent[owner]
	if len(sent) == 0 {
		return pods
	}
	unseen := map[types.UID]struct{}{}
	result := make([]*corev1.Pod, 0, len(pods))
	for _, pod := range pods {
		if _, ok := sent[pod.UID]; ok && pod.DeletionTimestamp == nil {
			unseen[pod.UID] = struct{}{}
			shown := *pod
			shown.DeletionTimestamp = &metav1.Time{Time: now}
			pod = &shown
		}
		result = append(result, pod)
	}
	if d.sent[owner] = unseen; len(unseen) == 0 {
		delete(d.sent, owner)
	}
	return result
}

// Forget drops what is known of an owner that is gone.
func (d *Deletions) Forget(owner types.NamespacedName) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sent, owner)
}
