// Package network is the only writer to this node's kernel. It gathers what
// should be (API objects, and the sandboxes that the CNI plugin tells of) and
// has the dataplane make it so, in one loop.
//
//	informers ──────────┐
//	                    ├─► dirty ─► pass: desired.Compute ─► dataplane.Apply
//	weft-cni ─► socket ─┘                                        │
//	    ◄──── ADD is answered once the Apply that has it is done ┘
//
// What a restart must not forget is in files: one per address (agent/ipam),
// one per sandbox (store). Everything else is in the API server and, pinned,
// in the kernel.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/agent/desired"
	"weft.dev/weft/agent/ipam"
	"weft.dev/weft/dataplane"
)

// applier is the part of *dataplane.Dataplane that this package needs.
type applier interface {
	Apply(context.Context, dataplane.State) error
}

// Config of a Network.
type Config struct {
	desired.Settings
	// Cluster has Services, EndpointSlices and Nodes. The caller starts it
	// after New and before, or while, Run.
	Cluster informers.SharedInformerFactory
	// Dataplane is the kernel; *dataplane.Dataplane.
	Dataplane applier
	// StateDir keeps, over restarts, addresses (StateDir/addresses) and
	// sandboxes (StateDir/sandboxes).
	StateDir string
	// SocketPath is where weft-cni reaches us: wire.NetConf.Socket.
	SocketPath string
	// DelDir is where weft-cni leaves DELs while we are away:
	// wire.NetConf.DelDir.
	DelDir string
	// OnReady, if set, is called once, when Ready first returns nil. It must
	// not block.
	OnReady func()
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

func (c *Config) validate() error {
	switch {
	case c.NodeName == "":
		return errors.New("network: NodeName must be set")
	case c.Cluster == nil:
		return errors.New("network: Cluster informers must be set")
	case c.Dataplane == nil:
		return errors.New("network: Dataplane must be set")
	case c.StateDir == "":
		return errors.New("network: StateDir must be set")
	case c.SocketPath == "":
		return errors.New("network: SocketPath must be set")
	case c.DelDir == "":
		return errors.New("network: DelDir must be set")
	case len(c.ClusterDNS) > 0 && c.DNSPort == 0:
		return errors.New("network: DNSPort must be set with ClusterDNS")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Network brings the kernel of this node in line with the cluster.
type Network struct {
	cfg     Config
	log     *slog.Logger
	pool    *ipam.Pool
	store   store
	devices devices
	health  *healthServer

	services       corelisters.ServiceLister
	nodes          corelisters.NodeLister
	endpointSlices discoverylisters.EndpointSliceLister
	synced         []cache.InformerSynced

	// memo makes a pass cost what has changed; only the loop uses it.
	memo desired.Memo

	// dirty asks for a pass, urgent for one without rest: somebody waits.
	dirty, urgent chan struct{}
	// ready is closed once the informers have synced and the node has pod
	// prefixes: from then on addresses can be given.
	ready chan struct{}

	mu        sync.Mutex
	sandboxes map[string]*sandbox // by sandbox ID
	changes   uint64              // counts changes of sandboxes
	waiters   []waiter
	// applied says that some Apply went through; lastErr is what went wrong
	// in the last one, apart from single pods.
	applied bool
	lastErr error
}

// sandbox is a record and when it last changed.
type sandbox struct {
	record
	change uint64 // value of Network.changes
}

// New reads what an earlier process recorded and registers with the
// informers. It starts nothing.
func New(cfg Config) (*Network, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	pool, err := ipam.Open(filepath.Join(cfg.StateDir, "addresses"))
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	n := &Network{
		cfg: cfg, log: cfg.Log, pool: pool,
		store:     store{dir: filepath.Join(cfg.StateDir, "sandboxes")},
		devices:   linuxDevices{},
		health:    newHealthServer(cfg.Log),
		dirty:     make(chan struct{}, 1),
		urgent:    make(chan struct{}, 1),
		ready:     make(chan struct{}),
		sandboxes: map[string]*sandbox{},
	}
	records, err := n.store.load()
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	for _, r := range records {
		n.sandboxes[r.SandboxID] = &sandbox{record: r}
	}
	return n, n.watch(cfg.Cluster)
}

// Run serves the CNI socket and keeps the kernel in line until ctx is done.
// What it has programmed stays in the kernel.
func (n *Network) Run(ctx context.Context) error {
	listener, err := listen(n.cfg.SocketPath)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	server := n.newServer()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer n.health.close()
	defer server.Close()
	wg.Go(func() {
		if err := serve(server, listener); err != nil {
			n.log.Error("CNI socket failed", "socket", n.cfg.SocketPath, "error", err)
		}
	})
	// Before the informers know all objects, a pass would take away from the
	// kernel what is merely not known yet.
	if !cache.WaitForCacheSync(ctx.Done(), n.synced...) {
		return nil
	}
	n.loop(ctx)
	return nil
}

// inputs is a consistent copy of all that a pass looks at.
func (n *Network) inputs() (in desired.Inputs, changes uint64, err error) {
	in.Settings = n.cfg.Settings
	var errs [3]error
	in.Services, errs[0] = n.services.List(everything)
	in.EndpointSlices, errs[1] = n.endpointSlices.List(everything)
	in.Nodes, errs[2] = n.nodes.List(everything)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.sandboxes {
		if !s.Leaving && n.devices.IsNetns(s.Netns) {
			in.Sandboxes = append(in.Sandboxes, s.Sandbox)
		}
	}
	return in, n.changes, errors.Join(errs[:]...)
}

// prefixes tells the address pool where addresses come from and reports
// whether the node has any. Once given, prefixes stay when the Node object is
// gone for a while: its pods are still there.
func (n *Network) prefixes(in desired.Inputs) bool {
	if cidrs := desired.PodCIDRs(in.NodeName, in.Nodes); len(cidrs) > 0 {
		n.pool.SetPrefixes(cidrs)
		return true
	}
	return n.isReady()
}

// Ready returns what keeps this node from giving pods a network, nil once the
// node has pod prefixes and its kernel was brought in line with the cluster.
func (n *Network) Ready() error {
	if !n.isReady() {
		return fmt.Errorf("network: node %s has no pod CIDR yet", n.cfg.NodeName)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.applied {
		return errors.Join(errors.New("network: the node's dataplane is not in place yet"), n.lastErr)
	}
	return nil
}

func (n *Network) isReady() bool {
	select {
	case <-n.ready:
		return true
	default:
		return false
	}
}

// addTimeout bounds how long an ADD waits for the kernel; runtimes wait
// longer. delTimeout is shorter: a DEL succeeds in any case.
const (
	addTimeout = 10 * time.Second
	delTimeout = 5 * time.Second
)
