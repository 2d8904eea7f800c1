// Package endpointslice publishes the pods that a Service selects as
// EndpointSlices. What goes into a slice, how slices are filled and which
// hints they carry is decided by k8s.io/endpointslice; this package decides
// when.
package endpointslice

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/endpointslice"
	"k8s.io/endpointslice/topologycache"
	"k8s.io/endpointslice/util"

	"weft.dev/weft/controlplane/reconcile"
)

const (
	// managedBy is upstream's name, so that slices stay in the same hands when
	// a cluster moves between the two.
	managedBy = "endpointslice-controller.k8s.io"
	// endpointsPerSlice is upstream's default, too.
	endpointsPerSlice = 100
)

// allNodes is the key of the one reconciliation that is not for a Service.
var allNodes = types.NamespacedName{}

// Controller keeps EndpointSlices of Services with a selector.
type Controller struct {
	*reconcile.Loop
	events   *reconcile.Events
	services corelisters.ServiceLister
	pods     corelisters.PodLister
	nodes    corelisters.NodeLister
	slices   discoverylisters.EndpointSliceLister

	reconciler *endpointslice.Reconciler
	written    *util.EndpointSliceTracker
	triggers   *util.TriggerTimeTracker
	topology   *topologycache.TopologyCache
	firstNodes sync.Once
	log        logr.Logger
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	services := env.Informers.Core().V1().Services()
	pods := env.Informers.Core().V1().Pods()
	nodes := env.Informers.Core().V1().Nodes()
	slices := env.Informers.Discovery().V1().EndpointSlices()
	c := &Controller{
		events:   env.NewEvents(),
		services: services.Lister(),
		pods:     pods.Lister(),
		nodes:    nodes.Lister(),
		slices:   slices.Lister(),
		written:  util.NewEndpointSliceTracker(),
		triggers: util.NewTriggerTimeTracker(),
		topology: topologycache.NewTopologyCache(),
	}
	c.reconciler = endpointslice.NewReconciler(env.Client, c.nodes, endpointsPerSlice, c.written, c.topology,
		c.events.Recorder(), managedBy, endpointslice.WithPreferSameTrafficDistributionEnabled(true))
	c.Loop = env.NewLoop(reconcile.Config{Reconcile: c.Reconcile, Events: c.events})
	c.log = logr.FromSlogHandler(c.Log().Handler())
	return c, errors.Join(
		c.WatchSelf(services.Informer()),
		c.Watch(pods.Informer(), c.podChanged),
		c.Watch(slices.Informer(), c.sliceChanged),
		c.Watch(nodes.Informer(), c.nodeChanged),
	)
}

func (c *Controller) podChanged(change reconcile.Change) {
	for _, key := range ServicesOf(c.services, change) {
		c.Add(key)
	}
}

func (c *Controller) sliceChanged(change reconcile.Change) {
	for _, object := range []metav1.Object{change.Before, change.After} {
		slice, ok := object.(*discoveryv1.EndpointSlice)
		if !ok || !c.reconciler.ManagedByController(slice) {
			continue
		}
		if object == change.Before && c.hasLost(change) {
			c.written.HandleDeletion(slice)
		}
		c.Add(serviceOf(slice))
	}
}

// hasLost reports whether a slice is no longer there for its Service: it is
// deleted, or somebody took it by changing its labels.
func (c *Controller) hasLost(change reconcile.Change) bool {
	before, _ := change.Before.(*discoveryv1.EndpointSlice)
	after, _ := change.After.(*discoveryv1.EndpointSlice)
	return after == nil || !c.reconciler.ManagedByController(after) || serviceOf(after) != serviceOf(before)
}

func serviceOf(slice *discoveryv1.EndpointSlice) types.NamespacedName {
	return types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
}

// nodeChanged looks at nodes again if topology hints may depend on it.
func (c *Controller) nodeChanged(change reconcile.Change) {
	before, _ := change.Before.(*corev1.Node)
	after, _ := change.After.(*corev1.Node)
	if before == nil || after == nil || isReady(before) != isReady(after) ||
		before.Labels[corev1.LabelTopologyZone] != after.Labels[corev1.LabelTopologyZone] {
		c.Add(allNodes)
	}
}

func isReady(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// --- Reconcile ---

// Reconcile makes the slices of one Service equal to the pods it selects.
func (c *Controller) Reconcile(_ context.Context, key types.NamespacedName) error {
	// A Service that is looked at before the nodes would lose its hints.
	c.firstNodes.Do(c.reconcileNodes)
	if key == allNodes {
		c.reconcileNodes()
		return nil
	}
	service, err := c.services.Services(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) { // its slices are garbage collected
		c.triggers.DeleteService(key.Namespace, key.Name)
		c.reconciler.DeleteService(key.Namespace, key.Name)
		c.written.DeleteService(key.Namespace, key.Name)
		return nil
	}
	if err != nil {
		return err
	}
	if service.Spec.Type == corev1.ServiceTypeExternalName || service.Spec.Selector == nil {
		return nil
	}
	return c.reconcileService(service)
}

func (c *Controller) reconcileService(service *corev1.Service) error {
	pods, err := c.pods.Pods(service.Namespace).List(labels.SelectorFromSet(service.Spec.Selector))
	if err != nil {
		return err
	}
	existing, err := c.existing(service)
	if err != nil {
		return err
	}
	if c.written.StaleSlices(service, existing) {
		return reconcile.ErrStale
	}
	trigger := c.triggers.ComputeEndpointLastChangeTriggerTime(service.Namespace, service, pods)
	err = c.reconciler.Reconcile(c.log, service, pods, existing, trigger)
	if err != nil && !reconcile.IsNamespaceTerminating(err) {
		c.events.Warning(service, "FailedToUpdateEndpointSlices",
			"Error updating Endpoint Slices for Service %s/%s: %v", service.Namespace, service.Name, err)
		return fmt.Errorf("write slices: %w", err)
	}
	return nil
}

// existing returns the service's slices that stay.
func (c *Controller) existing(service *corev1.Service) ([]*discoveryv1.EndpointSlice, error) {
	all, err := c.slices.EndpointSlices(service.Namespace).List(labels.SelectorFromSet(labels.Set{
		discoveryv1.LabelServiceName: service.Name,
		discoveryv1.LabelManagedBy:   managedBy,
	}))
	var kept []*discoveryv1.EndpointSlice
	for _, slice := range all {
		if slice.DeletionTimestamp == nil {
			kept = append(kept, slice)
		}
	}
	return kept, err
}

// reconcileNodes takes new shares of zones, and queues the Services whose
// hints no longer fit them.
func (c *Controller) reconcileNodes() {
	nodes, _ := c.nodes.List(labels.Everything()) // reads a cache: no error
	c.topology.SetNodes(c.log, nodes)
	for _, key := range c.topology.GetOverloadedServices() {
		namespace, name, _ := strings.Cut(key, "/")
		c.Add(types.NamespacedName{Namespace: namespace, Name: name})
	}
}
