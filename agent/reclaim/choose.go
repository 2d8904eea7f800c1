package reclaim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
)

// image is one image and its use.
type image struct {
	id            string
	bytes         int64
	pinned, inUse bool
	seen, used    time.Time // zero used: never, as far as is known
}

func (i image) isUnused() bool           { return !i.pinned && !i.inUse }
func (i image) isOld(now time.Time) bool { return now.Sub(i.seen) >= minImageAge }

// chooseImages returns the images to remove to free so many bytes: those that
// nothing uses and nobody has pinned, the longest unused first.
func chooseImages(images []image, toFree int64, now time.Time) []image {
	var unused []image
	for _, i := range images {
		if i.isUnused() && i.isOld(now) {
			unused = append(unused, i)
		}
	}
	slices.SortFunc(unused, func(a, b image) int {
		return cmp.Or(a.used.Compare(b.used), a.seen.Compare(b.seen), cmp.Compare(a.id, b.id))
	})
	for n := range unused {
		if toFree <= 0 {
			return unused[:n]
		}
		toFree -= unused[n].bytes
	}
	return unused
}

// criticalPriority is where the priorities of the system begin; such pods
// are not evicted (scheduling.k8s.io, system-cluster-critical).
const criticalPriority = 2_000_000_000

// candidate is a pod that could be evicted.
type candidate struct {
	pod             *corev1.Pod
	used, requested int64 // bytes of what the node is short of
}

func (c candidate) exceeds() bool { return c.used > c.requested }

func (c candidate) priority() int32 {
	if c.pod.Spec.Priority == nil {
		return 0
	}
	return *c.pod.Spec.Priority
}

// choosePod returns the pod to evict and the message for its status: first
// those that use more than they asked for, then by priority, then those that
// exceed their request most. Nil if there is none.
func choosePod(pods []*corev1.Pod, usage map[types.UID]Usage, pressure Pressure) (*corev1.Pod, string) {
	name := corev1.ResourceEphemeralStorage
	if pressure.Memory { // frees faster than disk
		name = corev1.ResourceMemory
	}
	var list []candidate
	for _, pod := range pods {
		ended := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
		c := candidate{pod: pod, used: usage[pod.UID].Disk}
		if name == corev1.ResourceMemory {
			c.used = usage[pod.UID].Memory
		}
		requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
		requested := requests[name]
		c.requested = requested.Value()
		if !ended && pod.DeletionTimestamp == nil && c.priority() < criticalPriority && c.used > 0 {
			list = append(list, c)
		}
	}
	if len(list) == 0 {
		return nil, ""
	}
	first := slices.MinFunc(list, func(a, b candidate) int {
		return cmp.Or(
			trueFirst(a.exceeds(), b.exceeds()),
			cmp.Compare(a.priority(), b.priority()),
			cmp.Compare(b.used-b.requested, a.used-a.requested),
			cmp.Compare(a.pod.UID, b.pod.UID),
		)
	})
	return first.pod, fmt.Sprintf("The node was low on resource: %s. The pod was using %s, its request is %s.", name,
		resource.NewQuantity(first.used, resource.BinarySI), resource.NewQuantity(first.requested, resource.BinarySI))
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
