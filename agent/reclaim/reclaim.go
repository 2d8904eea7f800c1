// Package reclaim gives disk and memory back before the node runs out of
// them.
//
//	disk 85 % full ─────► remove unused images, the longest unused first, down to 80 %
//	DiskPressure ───────► remove every unused image; still: evict a pod
//	MemoryPressure ─────► evict a pod
//
// What to remove and whom to evict are pure decisions (choose.go); the rules
// are those of https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/.
// One pod is evicted at a time, and the node is looked at again before the next.
package reclaim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// interval is how often the node is looked at.
	interval = 10 * time.Second
	// highShare of the disk starts the removal of images, lowShare ends it.
	highShare, lowShare = 0.85, 0.80
	// minImageAge is how long an image is left alone after it was first seen:
	// the container that it was pulled for may not exist yet.
	minImageAge = 2 * time.Minute
	// settleTime is how long an evicted pod has to be gone before the next.
	settleTime = 30 * time.Second
)

// Pressure is what the node is short of.
type Pressure struct{ Memory, Disk bool }

// Usage is what one pod uses, in bytes.
type Usage struct{ Memory, Disk int64 }

// Images is the part of the image store that is needed; cri.Images.
type Images interface {
	ImageStatus(ctx context.Context, image string) (*runtimeapi.Image, error)
	ListImages(ctx context.Context) ([]*runtimeapi.Image, error)
	RemoveImage(ctx context.Context, image string) error
}

// Containers lists the containers of the node, in every state.
type Containers interface {
	Containers(ctx context.Context, selector map[string]string) ([]*runtimeapi.Container, error)
}

// Pods is what agent/pods knows and does.
type Pods interface {
	// Pods lists the pods of the node with their present status.
	Pods() []*corev1.Pod
	// Evict ends a pod as Failed for reason Evicted.
	Evict(uid types.UID, message string)
}

// Config is what a Reclaimer needs; all fields but Log are required.
type Config struct {
	// Pressure looks at the node now.
	Pressure func() Pressure
	// Disk is how many bytes are used and how many there are where images are
	// kept.
	Disk func() (used, capacity int64, err error)
	// Usage measures every pod; its disk only if asked, since that takes long.
	Usage      func(ctx context.Context, disk bool) (map[types.UID]Usage, error)
	Images     Images
	Containers Containers
	Pods       Pods
	Log        *slog.Logger // nil = slog.Default()
}

// Reclaimer watches over one node.
type Reclaimer struct {
	cfg Config
	log *slog.Logger

	// seen and used are when each image was first seen and last in use.
	seen, used map[string]time.Time
	evicted    types.UID // the last one, at evictedAt
	evictedAt  time.Time
}

// New validates cfg. It starts nothing.
func New(cfg Config) (*Reclaimer, error) {
	if cfg.Pressure == nil || cfg.Disk == nil || cfg.Usage == nil || cfg.Images == nil || cfg.Containers == nil || cfg.Pods == nil {
		return nil, errors.New("reclaim: a field of Config is missing")
	}
	r := &Reclaimer{cfg: cfg, log: cfg.Log, seen: map[string]time.Time{}, used: map[string]time.Time{}}
	if r.log == nil {
		r.log = slog.Default()
	}
	return r, nil
}

// Run watches until ctx is done.
func (r *Reclaimer) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
		if err := r.pass(ctx, time.Now()); err != nil && ctx.Err() == nil {
			r.log.Error("the node's resources are not looked after; trying again", "error", err)
		}
	}
}

// pass does the least that helps.
func (r *Reclaimer) pass(ctx context.Context, now time.Time) error {
	images, err := r.images(ctx, now)
	if err != nil {
		return err
	}
	pressure := r.cfg.Pressure()
	used, capacity, err := r.cfg.Disk()
	if err != nil {
		return fmt.Errorf("measure disk: %w", err)
	}
	toFree := int64(0)
	if float64(used) > highShare*float64(capacity) {
		toFree = used - int64(lowShare*float64(capacity))
	}
	if pressure.Disk {
		toFree = capacity
	}
	freed, err := r.remove(ctx, chooseImages(images, toFree, now))
	if err != nil {
		return err
	}
	if freed > 0 {
		pressure = r.cfg.Pressure()
	}
	// Images too new to be removed may be enough in a moment.
	waits := !pressure.Memory && slices.ContainsFunc(images, func(i image) bool { return i.isUnused() && !i.isOld(now) })
	if !pressure.Memory && !pressure.Disk || waits || r.isSettling(now) {
		return nil
	}
	return r.evict(ctx, pressure, now)
}

// images lists the images with what is known of their use.
func (r *Reclaimer) images(ctx context.Context, now time.Time) ([]image, error) {
	list, err := r.cfg.Images.ListImages(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	inUse, err := r.inUse(ctx)
	if err != nil {
		return nil, err
	}
	seen, used := map[string]time.Time{}, map[string]time.Time{}
	var images []image
	for _, i := range list {
		first, known := r.seen[i.Id]
		if !known {
			first = now
		}
		last := r.used[i.Id]
		if inUse[i.Id] {
			last = now
		}
		seen[i.Id], used[i.Id] = first, last
		images = append(images, image{id: i.Id, bytes: int64(i.Size), pinned: i.Pinned, inUse: inUse[i.Id], seen: first, used: last})
	}
	r.seen, r.used = seen, used
	return images, nil
}

// inUse lists the images, by ID, that a container is made of, and those that
// pods mount as volumes.
func (r *Reclaimer) inUse(ctx context.Context) (map[string]bool, error) {
	containers, err := r.cfg.Containers.Containers(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	inUse := map[string]bool{}
	for _, c := range containers {
		inUse[c.GetImage().GetImage()], inUse[c.ImageRef], inUse[c.ImageId] = true, true, true
	}
	for _, pod := range r.cfg.Pods.Pods() {
		for _, volume := range pod.Spec.Volumes {
			if volume.Image == nil || volume.Image.Reference == "" {
				continue
			}
			mounted, err := r.cfg.Images.ImageStatus(ctx, volume.Image.Reference)
			if err != nil {
				return nil, fmt.Errorf("image of volume %s: %w", volume.Name, err)
			}
			inUse[mounted.GetId()] = true
		}
	}
	return inUse, nil
}

// remove removes images and returns how many bytes they had.
func (r *Reclaimer) remove(ctx context.Context, images []image) (freed int64, err error) {
	var errs []error
	for _, i := range images {
		if err := r.cfg.Images.RemoveImage(ctx, i.id); err != nil {
			errs = append(errs, fmt.Errorf("remove image %s: %w", i.id, err))
			continue
		}
		r.log.Info("unused image removed, the disk is filling up", "image", i.id, "bytes", i.bytes)
		freed += i.bytes
	}
	return freed, errors.Join(errs...)
}

// isSettling reports whether the pod evicted last may still be ending.
func (r *Reclaimer) isSettling(now time.Time) bool {
	if now.Sub(r.evictedAt) > settleTime {
		return false
	}
	for _, pod := range r.cfg.Pods.Pods() {
		if pod.UID == r.evicted && pod.Status.Phase != corev1.PodFailed && pod.Status.Phase != corev1.PodSucceeded {
			return true
		}
	}
	return false
}

// evict ends the pod that should go first.
func (r *Reclaimer) evict(ctx context.Context, pressure Pressure, now time.Time) error {
	usage, err := r.cfg.Usage(ctx, !pressure.Memory)
	if err != nil {
		return fmt.Errorf("measure pods: %w", err)
	}
	victim, message := choosePod(r.cfg.Pods.Pods(), usage, pressure)
	if victim == nil {
		return errors.New("the node is short of memory or disk, and no pod can be evicted")
	}
	r.log.Warn("evicting a pod", "pod", victim.Namespace+"/"+victim.Name, "reason", message)
	r.evicted, r.evictedAt = victim.UID, now
	r.cfg.Pods.Evict(victim.UID, message)
	return nil
}
