// Package node keeps this machine's Node object and its Lease.
//
//	/proc, /sys, statfs ─┐
//	CRI Version, Status ─┼─► Facts ──compute──► NodeStatus ──patch──► Node
//	CRI ListImages ──────┘        (pure; keeps transition times)
//
// The status is computed every ten seconds and written when it differs, or
// after five minutes without a write; the Lease, renewed every ten seconds,
// is the heartbeat. A restart reads the present status first, so no condition
// flips and no transition time moves; a deleted Node is created again.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	nodeutil "k8s.io/component-helpers/node/util"
	"k8s.io/component-helpers/nodedeclaredfeatures/features"
)

const (
	// statusInterval is how often the machine is measured.
	statusInterval = 10 * time.Second
	// reportInterval is the longest time without a status write, as
	// nodeStatusReportFrequency of kubelet.
	reportInterval = 5 * time.Minute
	// A node that is not ready yet is measured more often, at first every
	// startInterval.
	startInterval    = 250 * time.Millisecond
	maxStartInterval = 2 * time.Second
)

// Config says what the Node object is to contain.
type Config struct {
	NodeName string
	// Addresses become InternalIP addresses, the primary one first.
	Addresses []netip.Addr
	// Hostname is the Hostname address and label; "" is NodeName.
	Hostname string
	// Labels are added to kubernetes.io/{os,arch,hostname}; Taints are given
	// only when the Node is created.
	Labels map[string]string
	Taints []corev1.Taint
	// Annotations tell the control plane about this node.
	Annotations map[string]string
	// Port is where this node's API (agent/server) listens.
	Port int32

	// Capacity overrides what is measured, per resource. Several nodes of one
	// machine need it, else each claims the whole machine.
	Capacity corev1.ResourceList
	// Reserved is kept from pods: allocatable = capacity - reserved.
	Reserved corev1.ResourceList
	// MaxPods is the capacity for pods; 0 is 110.
	MaxPods int64
	// Thresholds of the pressure conditions; zero fields have kubelet's values.
	Thresholds Thresholds

	// StateDir is on the file system whose size is the ephemeral storage.
	StateDir string
	// Version is Weft's own, as in v1.37.2+weft.Version.
	Version string
	// DeclaredFeatures are optional Kubernetes features this node has; see
	// k8s.io/component-helpers/nodedeclaredfeatures.
	DeclaredFeatures []string
	// Ready returns what keeps the rest of the agent from being ready, nil if
	// nothing does. A nil function is always ready.
	Ready func() error

	Client kubernetes.Interface
	// Cluster delivers Nodes; only this one is looked at.
	Cluster informers.SharedInformerFactory
	Runtime Runtime
	Images  Images
	Log     *slog.Logger // nil = slog.Default()
}

func (c *Config) validate() error {
	var errs []error
	for _, problem := range validation.IsDNS1123Subdomain(c.NodeName) {
		errs = append(errs, fmt.Errorf("node name %q: %s", c.NodeName, problem))
	}
	if len(c.Addresses) == 0 {
		errs = append(errs, errors.New("no node address"))
	}
	if c.Client == nil || c.Cluster == nil || c.Runtime == nil || c.Images == nil {
		errs = append(errs, errors.New("client, informers, runtime or images are missing"))
	}
	for key, value := range c.Labels {
		errs = append(errs, checkLabel(key, value))
	}
	for _, name := range c.DeclaredFeatures {
		if !isDeclarable(name) {
			errs = append(errs, fmt.Errorf("declared feature %q is not one of Kubernetes %s", name, kubernetesVersion))
		}
	}
	return errors.Join(errs...)
}

// checkLabel refuses labels that the NodeRestriction admission would refuse,
// https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction.
func checkLabel(key, value string) error {
	problems := append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...)
	if len(problems) > 0 {
		return fmt.Errorf("node label %s=%s: %s", key, value, strings.Join(problems, "; "))
	}
	domain, _, hasDomain := strings.Cut(key, "/")
	if !hasDomain || !(domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") || domain == "k8s.io" || strings.HasSuffix(domain, ".k8s.io")) {
		return nil
	}
	for _, allowed := range []string{"node.kubernetes.io", "kubelet.kubernetes.io"} {
		if domain == allowed || strings.HasSuffix(domain, "."+allowed) {
			return nil
		}
	}
	switch key {
	case corev1.LabelHostname, corev1.LabelArchStable, corev1.LabelOSStable, corev1.LabelTopologyZone, corev1.LabelTopologyRegion:
		return nil
	}
	return fmt.Errorf("node label %s: a node may not set labels of %s on itself; an administrator may", key, domain)
}

func isDeclarable(name string) bool {
	for _, feature := range features.AllFeatures {
		if feature.Name() == name {
			return true
		}
	}
	return false
}

// Node keeps one Node object.
type Node struct {
	cfg     Config
	log     *slog.Logger
	machine machine
	nodes   cache.SharedIndexInformer
	handler cache.ResourceEventHandlerRegistration

	// wake asks for an early pass: this Node was changed or deleted.
	wake       chan struct{}
	registered chan struct{}
	uid        atomic.Value // types.UID of the Node, for the Lease

	// Used by the goroutine of Run only.
	present      *corev1.Node // as last read or written; nil before registration
	written      time.Time
	problemSince time.Time // zero without a problem
	runtime      RuntimeFacts
}

// New validates cfg and registers for events. It starts nothing.
func New(cfg Config) (*Node, error) {
	if cfg.Hostname == "" {
		cfg.Hostname = cfg.NodeName
	}
	if cfg.MaxPods == 0 {
		cfg.MaxPods = 110
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.Thresholds = cfg.Thresholds.orDefault()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("node configuration: %w", err)
	}
	n := &Node{
		cfg: cfg, log: cfg.Log,
		machine:    machine{root: "/", stateDir: cfg.StateDir},
		nodes:      cfg.Cluster.Core().V1().Nodes().Informer(),
		wake:       make(chan struct{}, 1),
		registered: make(chan struct{}),
	}
	changed := func(object any) {
		if n.isMe(object) {
			n.Wake()
		}
	}
	var err error
	n.handler, err = n.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, object any) { changed(object) },
		DeleteFunc: changed,
	})
	if err != nil {
		return nil, fmt.Errorf("watch nodes: %w", err)
	}
	return n, nil
}

func (n *Node) isMe(object any) bool {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	node, ok := object.(*corev1.Node)
	return ok && node.Name == n.cfg.NodeName
}

// Wake asks for a new look at once, for instance because Ready has changed.
// It never blocks.
func (n *Node) Wake() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Pressure measures the machine now; the conditions say the same, within ten
// seconds, and hold on to it. It may be called concurrently.
func (n *Node) Pressure() Pressure { return n.cfg.Thresholds.pressure(n.machine.measure()) }

// Registered is closed once the Node object exists with its addresses; the
// serving certificate is approved only from then on.
func (n *Node) Registered() <-chan struct{} { return n.registered }

// Run keeps the Node and its Lease until ctx is done. The conditions stay as
// they are then: the node lifecycle controller notices a node that is gone by
// its Lease.
func (n *Node) Run(ctx context.Context) error {
	defer n.nodes.RemoveEventHandler(n.handler)
	lease := make(chan struct{})
	go func() {
		defer close(lease)
		select {
		case <-n.registered:
			n.keepLease(ctx)
		case <-ctx.Done():
		}
	}()
	retry := startInterval
	for ctx.Err() == nil {
		wait := statusInterval
		err := n.pass(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			n.log.Error("node status not written, trying again", "node", n.cfg.NodeName, "in", retry, "error", err)
			wait, retry = retry, min(2*retry, statusInterval)
		case n.present == nil || !isReady(n.present.Status):
			wait, retry = retry, min(2*retry, maxStartInterval)
		default:
			retry = startInterval
		}
		select {
		case <-ctx.Done():
		case <-n.wake:
		case <-time.After(wait):
		}
	}
	<-lease
	return nil
}

// pass looks at the machine once and makes the Node object say what it saw.
func (n *Node) pass(ctx context.Context) error {
	n.takeChanges()
	now := time.Now()
	facts := n.measure(ctx, now)
	if n.present == nil {
		if err := n.register(ctx, facts, now); err != nil {
			return err
		}
	}
	return n.write(ctx, compute(facts, n.present.Status, now), now)
}

// takeChanges adopts what others wrote, and notices that the Node is gone. The
// informer may lag behind our own writes, so only a newer object counts.
func (n *Node) takeChanges() {
	if n.present == nil || !n.nodes.HasSynced() {
		return
	}
	object, exists, err := n.nodes.GetStore().GetByKey(n.cfg.NodeName)
	switch {
	case err != nil:
		return
	case !exists:
		// Gone, or created so recently that the informer has not heard of it:
		// register finds out.
		n.present = nil
	case newer(object.(*corev1.Node).ResourceVersion, n.present.ResourceVersion):
		n.present = object.(*corev1.Node).DeepCopy()
	}
}

// register creates the Node, or takes over the existing one and brings its
// labels and annotations up to date.
func (n *Node) register(ctx context.Context, facts Facts, now time.Time) error {
	nodes := n.cfg.Client.CoreV1().Nodes()
	want := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.cfg.NodeName, Labels: n.labels(facts), Annotations: n.cfg.Annotations},
		Spec:       corev1.NodeSpec{Taints: n.cfg.Taints},
		Status:     compute(facts, corev1.NodeStatus{}, now),
	}
	have, err := nodes.Get(ctx, n.cfg.NodeName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if have, err = nodes.Create(ctx, want, metav1.CreateOptions{}); err == nil {
			n.log.Info("node registered", "node", n.cfg.NodeName)
			n.written = now
		}
	}
	if err != nil {
		return fmt.Errorf("register node %s: %w", n.cfg.NodeName, err)
	}
	if patch := metadataPatch(have, want); patch != nil {
		if have, err = nodes.Patch(ctx, n.cfg.NodeName, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("label and annotate node %s: %w", n.cfg.NodeName, err)
		}
	}
	n.present = have
	return nil
}

func (n *Node) labels(facts Facts) map[string]string {
	all := map[string]string{
		corev1.LabelOSStable:   "linux",
		corev1.LabelArchStable: facts.Machine.Architecture,
		corev1.LabelHostname:   n.cfg.Hostname,
	}
	maps.Copy(all, n.cfg.Labels)
	return all
}

// write patches the status if it says something new, or nothing was said for
// reportInterval.
func (n *Node) write(ctx context.Context, status corev1.NodeStatus, now time.Time) error {
	if equality.Semantic.DeepEqual(withoutHeartbeats(n.present.Status), withoutHeartbeats(status)) && now.Sub(n.written) < reportInterval {
		n.present.Status = status // keeps the heartbeats for later passes
		n.announce()
		return nil
	}
	next := n.present.DeepCopy()
	next.Status = status
	written, _, err := nodeutil.PatchNodeStatus(n.cfg.Client.CoreV1(), types.NodeName(n.cfg.NodeName), n.present, next)
	if apierrors.IsNotFound(err) {
		n.present = nil
	}
	if err != nil {
		return fmt.Errorf("patch status of node %s: %w", n.cfg.NodeName, err)
	}
	n.present, n.written = written, now
	n.announce()
	return nil
}

func (n *Node) announce() {
	n.uid.Store(n.present.UID)
	select {
	case <-n.registered:
	default:
		close(n.registered)
	}
}
