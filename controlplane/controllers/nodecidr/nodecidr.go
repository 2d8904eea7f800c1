// Package nodecidr gives each node its part of the cluster's pod addresses:
// one prefix per address family in Node.spec.podCIDRs.
//
// The Node objects are the only record of what is taken, so a restart forgets
// nothing. All nodes are decided on together, by one worker, and only when the
// cache shows the last decision; so nothing is given out twice.
package nodecidr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"

	"weft.dev/weft/controlplane/reconcile"
)

// reasonExhausted is the reason of the event on a node that cannot get addresses.
const reasonExhausted = "CIDRNotAvailable"

// Range is the cluster's pod addresses of one family and the size of a node's part.
type Range struct {
	Cluster netip.Prefix
	// NodeBits is the prefix length of a node's part, for example 24.
	NodeBits int
}

// Validate reports a range that cannot be divided.
func (r Range) Validate() error {
	switch {
	case !r.Cluster.IsValid() || r.Cluster != r.Cluster.Masked():
		return fmt.Errorf("pod CIDR %v is not a prefix", r.Cluster)
	case r.NodeBits < r.Cluster.Bits() || r.NodeBits > r.Cluster.Addr().BitLen():
		return fmt.Errorf("node mask size /%d does not fit into pod CIDR %v", r.NodeBits, r.Cluster)
	}
	return nil
}

// allNodes is the only key of the queue.
var allNodes = types.NamespacedName{}

// Controller assigns pod CIDRs.
type Controller struct {
	*reconcile.Loop
	ranges []Range
	client kubernetes.Interface
	events *reconcile.Events
	nodes  corelisters.NodeLister
	store  reconcile.Store
	fence  reconcile.Fence
	told   map[types.UID]bool // nodes that got the event, so that each gets it once
}

// --- What it watches ---

// New makes the controller. ranges holds one range, or one of each family;
// with none, nothing is assigned.
func New(env reconcile.Env, ranges []Range) (*Controller, error) {
	for _, r := range ranges {
		if err := r.Validate(); err != nil {
			return nil, err
		}
	}
	if len(ranges) > 2 || len(ranges) == 2 && ranges[0].Cluster.Addr().Is4() == ranges[1].Cluster.Addr().Is4() {
		return nil, errors.New("pod CIDRs: at most one of each address family")
	}
	informer := env.Informers.Core().V1().Nodes()
	c := &Controller{
		ranges: ranges,
		client: env.Client,
		events: env.NewEvents(),
		nodes:  informer.Lister(),
		store:  informer.Informer().GetStore(),
		told:   map[types.UID]bool{},
	}
	c.Loop = env.NewLoop(reconcile.Config{Workers: 1, Reconcile: c.Reconcile, Events: c.events})
	return c, c.Watch(informer.Informer(), func(change reconcile.Change) {
		if change.After == nil || len(change.After.(*corev1.Node).Spec.PodCIDRs) == 0 {
			c.Add(allNodes)
		}
	})
}

// --- Reconcile ---

// Reconcile gives addresses to every node that has none. The key is ignored.
func (c *Controller) Reconcile(ctx context.Context, _ types.NamespacedName) error {
	if err := c.fence.Check(allNodes); err != nil {
		return err
	}
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	plan := decide(c.ranges, nodes)
	return c.carryOut(ctx, plan)
}

// --- Effects ---

func (c *Controller) carryOut(ctx context.Context, plan plan) error {
	for _, node := range plan.Exhausted {
		if !c.told[node.UID] {
			c.told[node.UID] = true
			c.events.Warning(node, reasonExhausted, "No pod addresses are left in %v; remove nodes, or run the cluster with a larger pod CIDR", c.ranges)
		}
	}
	return reconcile.Parallel(ctx, len(plan.Assign), func(ctx context.Context, i int) error {
		return c.assign(ctx, plan.Assign[i])
	})
}

// assign writes podCIDRs, which the API server lets nobody change afterwards.
func (c *Controller) assign(ctx context.Context, a assignment) error {
	data, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": a.Node.UID},
		"spec":     map[string]any{"podCIDR": a.CIDRs[0], "podCIDRs": a.CIDRs},
	})
	if err != nil {
		return err
	}
	patched, err := c.client.CoreV1().Nodes().Patch(ctx, a.Node.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or replaced by a node of the same name: its event follows
	}
	if err != nil {
		return fmt.Errorf("assign %v to node %s: %w", a.CIDRs, a.Node.Name, err)
	}
	c.fence.Wrote(allNodes, c.store, patched.ResourceVersion)
	c.Log().Info("pod addresses assigned", "node", a.Node.Name, "podCIDRs", a.CIDRs)
	return nil
}
