// Package endpointslicemirroring makes EndpointSlices from Endpoints that
// users write for Services without a selector, so that what reads slices
// (the dataplane, DNS, ingress) serves such Services, too.
//
//	Endpoints subset ─► one EndpointSlice for each address family in it
//
// Users who write EndpointSlices themselves say so with the label
// endpointslice.kubernetes.io/skip-mirror.
package endpointslicemirroring

//lint:file-ignore SA1019 users still write Endpoints

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/controlplane/reconcile"
)

// mirroredIndex finds slices by the Endpoints that they mirror.
const mirroredIndex = "weft.dev/mirrored"

// Controller keeps the slices that mirror Endpoints.
type Controller struct {
	*reconcile.Loop
	client    kubernetes.Interface
	events    *reconcile.Events
	endpoints corelisters.EndpointsLister
	services  corelisters.ServiceLister
	slices    cache.Indexer
	fence     reconcile.Fence
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	endpoints := env.Informers.Core().V1().Endpoints()
	services := env.Informers.Core().V1().Services()
	slices := env.Informers.Discovery().V1().EndpointSlices().Informer()
	err := slices.AddIndexers(cache.Indexers{mirroredIndex: func(obj any) ([]string, error) {
		if key, ok := mirrored(obj); ok {
			return []string{key.String()}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return nil, fmt.Errorf("index slices: %w", err)
	}
	c := &Controller{
		client:    env.Client,
		events:    env.NewEvents(),
		endpoints: endpoints.Lister(),
		services:  services.Lister(),
		slices:    slices.GetIndexer(),
	}
	c.Loop = env.NewLoop(reconcile.Config{Reconcile: c.Reconcile, Events: c.events})
	return c, errors.Join(
		c.WatchSelf(endpoints.Informer()),
		c.Watch(services.Informer(), c.serviceChanged),
		c.Watch(slices, c.sliceChanged),
	)
}

// mirrored returns the key of the Endpoints that a slice mirrors, if it is one of ours.
func mirrored(obj any) (types.NamespacedName, bool) {
	slice, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || slice.Labels[discoveryv1.LabelManagedBy] != managedBy {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}, true
}

// serviceChanged queues a Service that comes, goes, or whose selector does.
func (c *Controller) serviceChanged(change reconcile.Change) {
	before, _ := change.Before.(*corev1.Service)
	after, _ := change.After.(*corev1.Service)
	switch {
	case before == nil:
		c.Add(reconcile.KeyOf(after))
	case after == nil, (before.Spec.Selector == nil) != (after.Spec.Selector == nil):
		c.Add(reconcile.KeyOf(before))
	}
}

func (c *Controller) sliceChanged(change reconcile.Change) {
	for _, object := range []metav1.Object{change.Before, change.After} {
		if key, ok := mirrored(object); ok {
			c.Add(key)
		}
	}
}

// --- Reconcile ---

// Reconcile makes the slices of one Endpoints object equal to it, or deletes
// them if it is not to be mirrored. It is safe to repeat.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	if err := c.fence.Check(key); err != nil {
		return err
	}
	endpoints, err := c.endpoints.Endpoints(key.Namespace).Get(key.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	service, err := c.services.Services(key.Namespace).Get(key.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return c.carryOut(ctx, key, endpoints, decide(endpoints, service, c.existing(key)))
}

// existing returns the slices that were made for key and stay.
func (c *Controller) existing(key types.NamespacedName) []*discoveryv1.EndpointSlice {
	found, _ := c.slices.ByIndex(mirroredIndex, key.String()) // the only error is a missing index
	var kept []*discoveryv1.EndpointSlice
	for _, obj := range found {
		if slice := obj.(*discoveryv1.EndpointSlice); slice.DeletionTimestamp == nil {
			kept = append(kept, slice)
		}
	}
	return kept
}

// --- Effects ---

func (c *Controller) carryOut(ctx context.Context, key types.NamespacedName, endpoints *corev1.Endpoints, p plan) error {
	if len(p.Create)+len(p.Update) > 0 {
		c.tell(endpoints, p)
	}
	api := c.client.DiscoveryV1().EndpointSlices(key.Namespace)
	var errs []error
	for _, slice := range p.Create {
		created, err := api.Create(ctx, slice, metav1.CreateOptions{})
		errs = append(errs, c.wrote(key, created, err))
	}
	for _, slice := range p.Update {
		updated, err := api.Update(ctx, slice, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			err = reconcile.ErrStale // it is deleted, which the cache will show
		}
		errs = append(errs, c.wrote(key, updated, err))
	}
	for _, slice := range p.Delete {
		err := api.Delete(ctx, slice.Name, *metav1.NewPreconditionDeleteOptions(string(slice.UID)))
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete slice %s: %w", slice.Name, err))
		}
	}
	return errors.Join(errs...)
}

// wrote remembers a write, or says why there was none.
func (c *Controller) wrote(key types.NamespacedName, slice *discoveryv1.EndpointSlice, err error) error {
	switch {
	case err == nil:
		c.fence.Wrote(key, c.slices, slice.ResourceVersion)
		return nil
	case reconcile.IsNamespaceTerminating(err):
		return nil
	}
	return fmt.Errorf("write slice: %w", err)
}

// tell reports the addresses that are not mirrored.
func (c *Controller) tell(endpoints *corev1.Endpoints, p plan) {
	if p.Invalid > 0 {
		c.events.Warning(endpoints, "InvalidIPAddress", "Skipped %d invalid IP addresses when mirroring to EndpointSlices", p.Invalid)
	}
	if p.Beyond > 0 {
		c.events.Warning(endpoints, "TooManyAddressesToMirror",
			"A max of %d addresses can be mirrored to EndpointSlices per Endpoints subset. %d addresses were skipped", maxAddresses, p.Beyond)
	}
}
