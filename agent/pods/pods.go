// Package pods is Weft's kubelet: it makes the pods of one node run.
//
// One worker per pod is woken by the pod watch, the runtime's event stream,
// probe results, changed volumes and timers:
//
//	API ──informer──►┐                       ┌──► cgroup, volumes, sandbox, containers (CRI)
//	CRI ──events────►│ worker: read, decide, │
//	probes ─────────►│   carry out           ├──► status, events (API)
//	timers ─────────►┘                       └──► probes
//
// decide and status are pure functions of what was read. What takes long (a
// pull, a hook, a stop) is an operation of its own; its end wakes the worker,
// which never blocks and decides anew. There is at most one operation per key,
// and each is safe to run again after a crash.
//
// The state is in the API server, in the labels and annotations of sandboxes
// and containers, and on disk. A restarted agent therefore takes over what
// runs; stopping the agent stops no container.
package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"weft.dev/weft/agent/cri"
	"weft.dev/weft/agent/probes"
	"weft.dev/weft/agent/volumes"
)

// relistPeriod is how often everything is compared again, in case an event
// was lost.
const relistPeriod = 5 * time.Minute

// Volumes makes the volumes of pods; see agent/volumes.
type Volumes interface {
	// Mount makes all volumes of a pod available, by their names. It is idempotent.
	Mount(ctx context.Context, pod *corev1.Pod) (map[string]volumes.Mount, error)
	// Unmount undoes Mount, also for pods that only a past agent knew.
	Unmount(ctx context.Context, podUID types.UID) error
	// Orphans lists the pods that have volumes on disk.
	Orphans() ([]types.UID, error)
	// SubPath resolves the subPath of a mount safely; cleanup may be called
	// once the container is created, and may be nil.
	SubPath(ctx context.Context, pod *corev1.Pod, c *corev1.Container, m corev1.VolumeMount) (hostPath string, cleanup func(), err error)
}

// Objects gives the ConfigMaps and Secrets that pods use; see agent/volumes.
type Objects interface {
	Acquire(pod *corev1.Pod)
	Release(podUID types.UID)
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
}

// Prober runs health checks; see agent/probes.
type Prober interface {
	Sync(targets []probes.Target)
	Result(containerID string, kind probes.Kind) (probes.Result, bool)
	Remove(podUID types.UID)
}

// Config is what a Manager needs.
type Config struct {
	NodeName string
	// NodeIPs are the node's addresses, the primary one first.
	NodeIPs []netip.Addr
	Client  kubernetes.Interface
	// Local delivers the pods of this node; Cluster its Services and Nodes.
	Local, Cluster informers.SharedInformerFactory

	Runtime cri.Runtime
	Images  cri.Images
	Volumes Volumes
	Objects Objects
	Prober  Prober
	// Cgroups are the host's if nil.
	Cgroups Cgroups

	// KubeletDir holds pods/<uid>; LogDir holds <namespace>_<pod>_<uid>.
	KubeletDir, LogDir string
	// CgroupParent is the node's cgroup; "/" on a node of its own.
	CgroupParent string
	// PodPids limits the processes of each pod; 0 = no limit.
	PodPids int64
	// Pressure tells what the node is short of now; nil = of nothing. Pods that
	// would make it worse are refused.
	Pressure func() (memory, disk bool)
	// MaxPods is how many pods the node takes; 0 = what the Node says.
	MaxPods int

	ClusterDNS    []netip.Addr
	ClusterDomain string
	// ResolvConf is the node's resolv.conf; "" = pods resolve nothing of it.
	ResolvConf string

	Recorder record.EventRecorder
	// OnReady, if set, is called once, when Ready first returns nil.
	OnReady func()
	Log     *slog.Logger // nil = slog.Default()
}

// Manager runs the pods of one node.
type Manager struct {
	cfg      Config
	log      *slog.Logger
	node     node
	pods     corelisters.PodLister
	services corelisters.ServiceLister
	nodes    corelisters.NodeLister
	synced   []cache.InformerSynced

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before
	workers map[types.UID]*worker
	// admitted are the pods that the node has taken, with the resources that
	// it has granted them; deferred those whose resize waits for room.
	admitted map[types.UID]*corev1.Pod
	deferred map[types.UID]bool
	running  sync.WaitGroup

	lookedAtPods, lookedAtRuntime atomic.Bool
}

// New validates cfg and registers for events. It starts nothing.
func New(cfg Config) (*Manager, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Cgroups == nil {
		cfg.Cgroups = HostCgroups()
	}
	m := &Manager{
		cfg: cfg, log: cfg.Log,
		node: node{
			logDir: cfg.LogDir, kubeletDir: cfg.KubeletDir, cgroupParent: cfg.CgroupParent,
			dns: resolver{clusterDNS: cfg.ClusterDNS, clusterDomain: cfg.ClusterDomain, hostFile: cfg.ResolvConf},
		},
		pods:     cfg.Local.Core().V1().Pods().Lister(),
		services: cfg.Cluster.Core().V1().Services().Lister(),
		nodes:    cfg.Cluster.Core().V1().Nodes().Lister(),
		workers:  map[types.UID]*worker{},
		admitted: map[types.UID]*corev1.Pod{},
		deferred: map[types.UID]bool{},
	}
	podInformer := cfg.Local.Core().V1().Pods().Informer()
	m.synced = []cache.InformerSynced{podInformer.HasSynced,
		cfg.Cluster.Core().V1().Services().Informer().HasSynced,
		cfg.Cluster.Core().V1().Nodes().Informer().HasSynced}
	_, err := podInformer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { m.podChanged(nil, obj) },
		UpdateFunc: m.podChanged,
		DeleteFunc: m.podGone,
	})
	if err != nil {
		return nil, fmt.Errorf("watch pods: %w", err)
	}
	return m, nil
}

func (c *Config) validate() error {
	missing := func(name string) error { return fmt.Errorf("pods: Config.%s is missing", name) }
	switch {
	case c.NodeName == "":
		return missing("NodeName")
	case c.Client == nil:
		return missing("Client")
	case c.Local == nil || c.Cluster == nil:
		return missing("Local or Cluster")
	case c.Runtime == nil || c.Images == nil:
		return missing("Runtime or Images")
	case c.Volumes == nil || c.Objects == nil || c.Prober == nil:
		return missing("Volumes, Objects or Prober")
	case c.Recorder == nil:
		return missing("Recorder")
	case !filepath.IsAbs(c.KubeletDir) || !filepath.IsAbs(c.LogDir):
		return errors.New("pods: Config.KubeletDir and LogDir must be absolute paths")
	}
	return nil
}

// Run makes pods run until ctx is done. It stops no container.
func (m *Manager) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), m.synced...) {
		return nil
	}
	m.lookedAtPods.Store(true)
	started, err := m.pods.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	m.countStarted(started)
	m.mu.Lock()
	m.ctx = ctx
	m.mu.Unlock()
	// Again: from here on events start workers, but not those before.
	pods, err := m.pods.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for _, pod := range pods {
		m.podChanged(nil, pod)
	}
	m.running.Go(func() { m.relistNowAndThen(ctx) })
	err = m.cfg.Runtime.Watch(ctx, m.runtimeEvent)
	<-ctx.Done()
	m.running.Wait()
	return err
}

// Ready returns what keeps pods from being run, nil once the pods of this node
// are known from the API server and what runs of them from the runtime.
func (m *Manager) Ready() error {
	switch {
	case !m.lookedAtPods.Load():
		return errors.New("the pods of this node have not been read from the API server yet")
	case !m.lookedAtRuntime.Load():
		return errors.New("the container runtime has not been asked for this node's pods yet")
	}
	return nil
}

func (m *Manager) relistNowAndThen(ctx context.Context) {
	for {
		period := relistPeriod
		if !m.lookedAtRuntime.Load() {
			period = observeRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(period):
			m.relist(ctx)
		}
	}
}

// runtimeEvent is called for every event of the runtime.
func (m *Manager) runtimeEvent(e cri.Event) {
	if e.Resync {
		m.relist(m.ctx)
		return
	}
	if w := m.worker(e.PodUID); w != nil {
		w.observeAgain()
	}
}

// relist wakes every worker to look again, and finds what runs on this node
// for pods that the API server no longer knows.
func (m *Manager) relist(ctx context.Context) {
	m.mu.Lock()
	for _, w := range m.workers {
		w.observeAgain()
	}
	m.mu.Unlock()
	orphans, err := m.orphans(ctx)
	if err != nil {
		m.log.Error("look for pods that are no longer wanted", "err", err)
	} else if !m.lookedAtRuntime.Swap(true) && m.cfg.OnReady != nil {
		m.cfg.OnReady()
	}
	for _, pod := range orphans {
		m.log.Info("removing what is left of a pod", "pod", keyOf(pod), "uid", pod.UID)
		if w := m.startWorker(pod); w != nil {
			w.setGone()
		}
	}
}

// podChanged is the handler for added and updated pods.
func (m *Manager) podChanged(old, obj any) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	if before, ok := old.(*corev1.Pod); ok && before.UID != pod.UID {
		m.podGone(before)
	}
	if w := m.startWorker(pod); w != nil {
		w.setPod(pod)
	}
}

// podGone is the handler for pods that the API server has forgotten.
func (m *Manager) podGone(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	if w := m.worker(pod.UID); w != nil {
		w.setPod(pod)
		w.setGone()
	}
}

func (m *Manager) worker(uid types.UID) *worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.workers[uid]
}

// startWorker returns the worker of a pod, started if there was none; nil
// while the manager does not run.
func (m *Manager) startWorker(pod *corev1.Pod) *worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx == nil || m.ctx.Err() != nil {
		return nil
	}
	w := m.workers[pod.UID]
	if w == nil {
		w = newWorker(m, pod)
		m.workers[pod.UID] = w
		ctx := m.ctx
		m.running.Go(func() { w.run(ctx) })
	}
	return w
}

// forget drops a pod of which nothing is left.
func (m *Manager) forget(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.workers, uid)
	delete(m.admitted, uid)
	delete(m.deferred, uid)
	m.retryDeferred()
}

// Changed wakes the worker of a pod: a probe result has changed.
func (m *Manager) Changed(podUID types.UID) {
	if w := m.worker(podUID); w != nil {
		w.wakeUp()
	}
}

// ObjectsChanged wakes the worker of a pod because a ConfigMap or Secret that
// it uses has changed: what failed for the lack of it is tried again at once.
func (m *Manager) ObjectsChanged(podUID types.UID) {
	if w := m.worker(podUID); w != nil {
		w.retryNow()
	}
}

// Event reports an event about a container of a pod; it fits probes.Config.
func (m *Manager) Event(pod *corev1.Pod, container, eventType, reason, message string) {
	m.cfg.Recorder.Event(referenceTo(pod, container), eventType, reason, message)
}
