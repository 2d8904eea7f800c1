// Package volumes makes the volumes of this node's pods: directories, memory, the host's files, persistent volumes, and files
// made of API objects, which it keeps current while the pod runs.
//
//	pods ──Mount(pod)──► Manager ──► KubeletDir/pods/UID/volumes/kubernetes.io~KIND/NAME
//	                        ▲
//	     Objects: one watch per ConfigMap and Secret in use, one for trust bundles
//	     tokens, certificates: asked for and renewed in time
//
// The layout of directories, modes and owners is kubelet's, and so are the messages of failures, which agent/pods reports as
// FailedMount events. What is on disk is the only state: a restarted agent mounts again over what is there, and finds what is
// left of pods that are gone with Orphans.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"
)

// refreshers is how many pods are brought up to date at a time.
const refreshers = 4

// Config is what a Manager needs from the rest of the agent.
type Config struct {
	NodeName   string
	KubeletDir string // absolute; see EnsureSharedDir
	Client     kubernetes.Interface
	Objects    *Objects
	Local      *LocalDirs
	// Allocatable returns what this node can give to pods, the default of limits in the downward API and of memory volumes.
	Allocatable func() corev1.ResourceList
	// Pods is the informer for this node's pods, which tells of changed labels and annotations. It may be nil: then calling
	// Mount again for a changed pod does the same.
	Pods cache.SharedIndexInformer
	Log  *slog.Logger
}

// Manager mounts and unmounts volumes. Its methods may be called concurrently; those about the same pod wait for each other.
type Manager struct {
	cfg          Config
	podsDir      string // free of symlinks
	objects      *Objects
	tokens       *tokens
	certificates *certificates
	queue        workqueue.TypedRateLimitingInterface[types.UID]

	mu      sync.Mutex
	mounted map[types.UID]*podVolumes
}

// podVolumes is a pod whose volumes are mounted or being mounted. Whoever works on its files holds mu.
type podVolumes struct {
	mu   sync.Mutex
	pod  *corev1.Pod // nil before the first Mount and after Unmount
	made map[string]Mount
}

// Mount is where a volume of a pod is on this node.
type Mount struct {
	HostPath string
	// ReadOnly says that containers must not write to the volume, whatever their volumeMounts ask for.
	ReadOnly bool
}

// New validates cfg, creates the directory for pods, and registers for changes; Run handles them.
func New(cfg Config) (*Manager, error) {
	switch {
	case !filepath.IsAbs(cfg.KubeletDir):
		return nil, fmt.Errorf("volumes: KubeletDir %q is not an absolute path", cfg.KubeletDir)
	case cfg.Client == nil:
		return nil, errors.New("volumes: Client is missing")
	case cfg.Objects == nil:
		return nil, errors.New("volumes: Objects is missing")
	case cfg.Local == nil:
		return nil, errors.New("volumes: Local is missing")
	case cfg.Allocatable == nil:
		return nil, errors.New("volumes: Allocatable is missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	podsDir := filepath.Join(cfg.KubeletDir, "pods")
	if err := os.MkdirAll(podsDir, 0o750); err != nil {
		return nil, fmt.Errorf("create directory for pods: %w", err)
	}
	podsDir, err := filepath.EvalSymlinks(podsDir)
	if err != nil {
		return nil, fmt.Errorf("resolve directory for pods: %w", err)
	}
	m := &Manager{
		cfg:     cfg,
		podsDir: podsDir,
		objects: cfg.Objects,
		tokens:  &tokens{client: cfg.Client, log: cfg.Log, known: map[tokenKey]token{}},
		certificates: &certificates{
			ctx: cfg.Objects.ctx, client: cfg.Client, nodeName: cfg.NodeName, log: cfg.Log, tell: cfg.Objects.tell,
			known: map[certificateKey]*certificate{}, changed: make(chan struct{}),
		},
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[types.UID]()),
		mounted: map[types.UID]*podVolumes{},
	}
	cfg.Objects.listen(func(uid types.UID) { m.queue.Add(uid) })
	if cfg.Pods != nil {
		if err := m.watchPods(cfg.Pods); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Run keeps the files of mounted volumes current until ctx is done: with changed ConfigMaps, Secrets, labels and annotations at
// once, and with service account tokens in time.
func (m *Manager) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	for range refreshers {
		workers.Go(func() {
			for m.refreshNext(ctx) {
			}
		})
	}
	<-ctx.Done()
	m.queue.ShutDown()
	workers.Wait()
	return nil
}

// Mount makes every volume that a container of pod uses, and returns them by name; images are left to the container runtime, which
// mounts them into containers itself. It is idempotent; called for a pod that
// changed, it also brings the files up to date. If volumes fail, the others are made all the same; the error joins one error per
// failed volume (errors.Join), each worded for an event, and the mounts that succeeded are returned with it.
func (m *Manager) Mount(ctx context.Context, pod *corev1.Pod) (map[string]Mount, error) {
	if err := checkUID(pod.UID); err != nil {
		return nil, err
	}
	p := m.lock(pod.UID)
	defer p.mu.Unlock()
	pod = m.latest(pod)
	m.objects.Acquire(pod)
	if err := m.makePodDirs(pod.UID); err != nil {
		return nil, err
	}
	p.pod = pod
	used, devices, _ := volumeutil.GetPodVolumeNames(pod, false)
	made := make(map[string]Mount, len(used))
	var failed []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !used.Has(v.Name) && !devices.Has(v.Name) || v.Image != nil {
			continue
		}
		mount, err := m.mountOne(ctx, pod, v)
		if devices.Has(v.Name) {
			err = unsupported("volumeDevices[name=%s]", v.Name)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err))
			continue
		}
		made[v.Name] = mount
	}
	p.made = made
	m.scheduleRenewal(pod.UID)
	return made, errors.Join(failed...)
}

// mountOne makes one volume.
func (m *Manager) mountOne(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (Mount, error) {
	switch {
	case v.EmptyDir != nil:
		return m.mountEmptyDir(pod, v)
	case v.HostPath != nil:
		return Mount{HostPath: v.HostPath.Path}, checkHostPath(v.HostPath)
	case isLive(v):
		return m.mountFiles(ctx, pod, v)
	case v.PersistentVolumeClaim != nil, v.Ephemeral != nil:
		return m.mountClaim(ctx, pod, v)
	default:
		return Mount{}, unsupported("volumes[name=%s].%s", v.Name, sourceField(&v.VolumeSource))
	}
}

// Unmount takes away everything that Mount and SubPath made for a pod: mounts first, then files. What other pods or the host own
// (hostPath, persistent volumes) is not touched. It is idempotent and also works for a pod of which only the UID is known.
func (m *Manager) Unmount(_ context.Context, podUID types.UID) error {
	if err := checkUID(podUID); err != nil {
		return err
	}
	p := m.lock(podUID)
	defer p.mu.Unlock()
	p.pod, p.made = nil, nil
	dir := m.PodDir(podUID)
	if err := unmountAll(dir, false); err != nil {
		return fmt.Errorf("volumes of pod %s: %w", podUID, err)
	}
	if err := removeTree(dir); err != nil {
		return fmt.Errorf("volumes of pod %s: %w", podUID, err)
	}
	m.objects.Release(podUID)
	m.tokens.forget(podUID)
	m.certificates.forget(podUID)
	m.queue.Forget(podUID)
	m.mu.Lock()
	delete(m.mounted, podUID)
	m.mu.Unlock()
	return nil
}

// Orphans returns the UIDs of all pods that have a directory, running or not.
func (m *Manager) Orphans() ([]types.UID, error) {
	entries, err := os.ReadDir(m.podsDir)
	if err != nil {
		return nil, err
	}
	var uids []types.UID
	for _, entry := range entries {
		if entry.IsDir() {
			uids = append(uids, types.UID(entry.Name()))
		}
	}
	return uids, nil
}

// PodDir is the directory of a pod, for files that other parts of the agent keep beside its volumes; Unmount deletes it.
func (m *Manager) PodDir(podUID types.UID) string {
	return filepath.Join(m.podsDir, string(podUID))
}

// refreshNext brings the files of one pod up to date and reports whether to go on.
func (m *Manager) refreshNext(ctx context.Context) bool {
	uid, shutdown := m.queue.Get()
	if shutdown {
		return false
	}
	defer m.queue.Done(uid)
	if err := m.refresh(ctx, uid); err != nil {
		m.cfg.Log.Warn("cannot update volumes", "podUID", string(uid), "err", err)
		m.queue.AddRateLimited(uid)
		return true
	}
	m.queue.Forget(uid)
	return true
}

// refresh writes the files of a pod's live volumes anew where they changed. Volumes that were never made are left to Mount.
func (m *Manager) refresh(ctx context.Context, uid types.UID) error {
	m.mu.Lock()
	p, ok := m.mounted[uid]
	m.mu.Unlock()
	if !ok {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pod == nil {
		return nil
	}
	p.pod = m.latest(p.pod)
	var failed []error
	for i := range p.pod.Spec.Volumes {
		v := &p.pod.Spec.Volumes[i]
		if _, made := p.made[v.Name]; !made || !isLive(v) {
			continue
		}
		_, err := m.mountFiles(ctx, p.pod, v)
		switch {
		case apierrors.IsNotFound(err):
			// As in kubelet, the files stay; the watch tells when the object is back.
			m.cfg.Log.Debug("object of a mounted volume is gone", "podUID", string(uid), "volume", v.Name, "err", err)
		case err != nil:
			failed = append(failed, fmt.Errorf("volume %q: %w", v.Name, err))
		}
	}
	m.scheduleRenewal(uid)
	return errors.Join(failed...)
}

// scheduleRenewal queues a pod for the time when its first token or certificate needs to be replaced.
func (m *Manager) scheduleRenewal(uid types.UID) {
	if at, ok := m.tokens.nextRenewal(uid); ok {
		m.queue.AddAfter(uid, max(0, time.Until(at)))
	}
	if at, ok := m.certificates.nextRenewal(uid); ok {
		m.queue.AddAfter(uid, max(0, time.Until(at)))
	}
}

// watchPods queues pods whose downward API files may have changed.
func (m *Manager) watchPods(informer cache.SharedIndexInformer) error {
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(_, current any) {
		if pod, ok := current.(*corev1.Pod); ok && hasDownwardFiles(pod) {
			m.queue.Add(pod.UID)
		}
	}})
	return err
}

// latest returns the pod as the informer knows it, or as it was if the informer does not know it.
func (m *Manager) latest(pod *corev1.Pod) *corev1.Pod {
	if m.cfg.Pods == nil {
		return pod
	}
	item, ok, err := m.cfg.Pods.GetStore().GetByKey(pod.Namespace + "/" + pod.Name)
	if err != nil || !ok {
		return pod
	}
	if current, isPod := item.(*corev1.Pod); isPod && current.UID == pod.UID {
		return current
	}
	return pod
}

// lock returns the state of a pod, a new one if it is not known, with its lock held.
func (m *Manager) lock(uid types.UID) *podVolumes {
	for {
		p := m.entry(uid)
		p.mu.Lock()
		if p == m.entry(uid) {
			return p
		}
		p.mu.Unlock() // Unmount dropped it meanwhile
	}
}

func (m *Manager) entry(uid types.UID) *podVolumes {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.mounted[uid]
	if !ok {
		p = &podVolumes{}
		m.mounted[uid] = p
	}
	return p
}

// isLive reports whether a volume's files are made of API objects that may change.
func isLive(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

func hasDownwardFiles(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.DownwardAPI != nil }) ||
		projects(pod, func(source *corev1.VolumeProjection) bool { return source.DownwardAPI != nil })
}

// projects reports whether a source of the pod's projected volumes is of a certain kind.
func projects(pod *corev1.Pod, is func(*corev1.VolumeProjection) bool) bool {
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for i := range v.Projected.Sources {
			if is(&v.Projected.Sources[i]) {
				return true
			}
		}
	}
	return false
}

// checkUID refuses a UID that would be more than one path element. The API server accepts only names that are safe.
func checkUID(uid types.UID) error {
	if name := string(uid); name == "" || name == "." || name == ".." || filepath.Base(name) != name {
		return fmt.Errorf("pod UID %q cannot be a directory name", uid)
	}
	return nil
}
