package node

import (
	"context"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/apimachinery/lease"
	"k8s.io/utils/clock"
)

// The values kubelet has; the node lifecycle controller's grace period of
// 50 s is made for them.
const (
	leaseSeconds  = 40
	leaseInterval = 10 * time.Second
)

// keepLease renews the Lease of this node until ctx is done. The Lease is
// owned by the Node, so it goes when the Node is deleted.
func (n *Node) keepLease(ctx context.Context) {
	own := func(l *coordinationv1.Lease) error {
		l.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Node",
			Name: n.cfg.NodeName, UID: n.uid.Load().(types.UID),
		}}
		return nil
	}
	failing := func() { n.log.Error("node lease not renewed", "node", n.cfg.NodeName) }
	lease.NewController(clock.RealClock{}, n.cfg.Client, n.cfg.NodeName, leaseSeconds, failing,
		leaseInterval, n.cfg.NodeName, corev1.NamespaceNodeLease, own).Run(ctx)
}
