package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"weft.dev/weft/controlplane/api"
)

// Deleting what cannot be deleted now, for instance because something is mounted in it, is tried again after these delays.
const (
	firstReclaim = 500 * time.Millisecond
	lastReclaim  = time.Minute
)

// reclaimers is how many volumes are deleted at a time.
const reclaimers = 2

// ReclaimerConfig is what a Reclaimer needs from the rest of the agent.
type ReclaimerConfig struct {
	NodeName string
	Client   kubernetes.Interface
	Dirs     *LocalDirs
	Recorder record.EventRecorder
	Log      *slog.Logger // nil = slog.Default()
}

// Reclaimer deletes the data of local volumes that are no longer wanted. The control plane says which: it deletes the
// PersistentVolume, whose finalizer keeps it until the Reclaimer has deleted the directory and takes the finalizer off. That an
// object is missing never deletes anything: a cluster that lost objects keeps its users' data.
type Reclaimer struct {
	cfg      ReclaimerConfig
	informer cache.SharedIndexInformer
	queue    workqueue.TypedRateLimitingInterface[string]
}

// NewReclaimer makes a Reclaimer with an informer of its own, for this node's volumes only.
func NewReclaimer(cfg ReclaimerConfig) (*Reclaimer, error) {
	if cfg.NodeName == "" || cfg.Client == nil || cfg.Dirs == nil || cfg.Recorder == nil {
		return nil, errors.New("volumes: reclaimer: node name, client, directories or recorder are missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	ours := labels.SelectorFromSet(labels.Set{api.NodeLabel: cfg.NodeName}).String()
	r := &Reclaimer{
		cfg:   cfg,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstReclaim, lastReclaim)),
		informer: coreinformers.NewFilteredPersistentVolumeInformer(cfg.Client, 0, nil,
			func(o *metav1.ListOptions) { o.LabelSelector = ours }),
	}
	consider := func(object any) {
		if pv, ok := object.(*corev1.PersistentVolume); ok && isUnwanted(pv) {
			r.queue.Add(pv.Name)
		}
	}
	_, err := r.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    consider,
		UpdateFunc: func(_, object any) { consider(object) },
	})
	return r, err
}

// isUnwanted reports whether a volume's data is to be deleted: its PersistentVolume is being deleted under policy Delete, and no
// claim holds it any more.
func isUnwanted(pv *corev1.PersistentVolume) bool {
	return isDynamicLocal(pv) &&
		pv.DeletionTimestamp != nil &&
		pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete &&
		slices.Contains(pv.Finalizers, api.LocalVolumeFinalizer) &&
		pv.Status.Phase != corev1.VolumeBound
}

// Run deletes what is to be deleted until ctx is done.
func (r *Reclaimer) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { r.informer.RunWithContext(ctx) })
	for range reclaimers {
		running.Go(func() {
			for r.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	r.queue.ShutDown()
	running.Wait()
	return nil
}

// next works on one volume and reports whether there may be more.
func (r *Reclaimer) next(ctx context.Context) bool {
	name, shutdown := r.queue.Get()
	if shutdown {
		return false
	}
	defer r.queue.Done(name)
	err := r.reclaim(ctx, name)
	if err == nil || ctx.Err() != nil {
		r.queue.Forget(name)
		return true
	}
	level := slog.LevelWarn
	if apierrors.IsConflict(err) {
		level = slog.LevelDebug // changed meanwhile, for instance by the protection of volumes in use
	}
	r.cfg.Log.Log(ctx, level, "cannot delete volume, trying again", "persistentVolume", name, "err", err)
	r.queue.AddRateLimited(name)
	return true
}

// reclaim deletes a volume's data and lets its PersistentVolume go. It asks the API server first: a cache that is behind must not
// delete data of which it has been said meanwhile that it stays.
func (r *Reclaimer) reclaim(ctx context.Context, name string) error {
	pv, err := r.cfg.Client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !isUnwanted(pv) || pv.Labels[api.NodeLabel] != r.cfg.NodeName {
		return nil
	}
	if err := r.cfg.Dirs.remove(pv); err != nil {
		r.cfg.Recorder.Eventf(pv, corev1.EventTypeWarning, "VolumeFailedDelete", "Data of the volume is not deleted: %v", err)
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": pv.ResourceVersion,
		"finalizers":      slices.DeleteFunc(slices.Clone(pv.Finalizers), func(f string) bool { return f == api.LocalVolumeFinalizer }),
	}})
	if err != nil {
		return err
	}
	_, err = r.cfg.Client.CoreV1().PersistentVolumes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("report that the data is deleted: %w", err)
	}
	r.cfg.Log.Info("data of volume deleted", "persistentVolume", name)
	return nil
}
