// Package loadbalancer gives Services of type LoadBalancer addresses from
// LoadBalancerPools. Every node answers for them; how packets to them reach a
// node is for the network outside, or a local cluster's own route, to say.
//
// What a Service has is in its status and nowhere else, so a restart forgets
// nothing. All Services are decided on together, by one worker, and only when
// the cache shows the last decision; so no address is given out twice.
//
//	pools, Services ──decide──► outcome per Service ──► finalizer and annotation, then status
//	                                             release: status, then finalizer and annotation
package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/controlplane/api"
	"weft.dev/weft/controlplane/reconcile"
)

// allServices is the only key of the queue.
var allServices = types.NamespacedName{}

// Controller allocates addresses.
type Controller struct {
	*reconcile.Loop
	client   kubernetes.Interface
	pools    dynamic.ResourceInterface
	informer cache.SharedIndexInformer // of pools
	events   *reconcile.Events
	services corelisters.ServiceLister
	store    reconcile.Store
	fence    reconcile.Fence
	told     map[types.UID]string // what Services were last told, so that each hears it once
}

// --- What it watches ---

// New makes the controller; pools is a client for the LoadBalancerPools.
func New(env reconcile.Env, pools dynamic.Interface) (*Controller, error) {
	services := env.Informers.Core().V1().Services()
	c := &Controller{
		client:   env.Client,
		pools:    pools.Resource(api.LoadBalancerPools),
		informer: dynamicinformer.NewFilteredDynamicInformer(pools, api.LoadBalancerPools, "", 0, nil, nil).Informer(),
		events:   env.NewEvents(),
		services: services.Lister(),
		store:    services.Informer().GetStore(),
		told:     map[types.UID]string{},
	}
	c.Loop = env.NewLoop(reconcile.Config{Workers: 1, Reconcile: c.Reconcile, Events: c.events})
	return c, errors.Join(
		c.Watch(services.Informer(), func(change reconcile.Change) {
			if concerns(change.Before) || concerns(change.After) {
				c.Add(allServices)
			}
			if change.After == nil {
				c.Add(allServices) // may have had an external address
			}
		}),
		c.Watch(c.informer, func(reconcile.Change) { c.Add(allServices) }),
	)
}

// concerns reports whether a Service has or takes addresses.
func concerns(object metav1.Object) bool {
	svc, ok := object.(*corev1.Service)
	return ok && (isOurs(svc) || isHeld(svc) || len(current(svc)) > 0 || len(svc.Spec.ExternalIPs) > 0)
}

// Run watches the pools and allocates until ctx is done.
func (c *Controller) Run(ctx context.Context) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.informer.RunWithContext(ctx)
	}()
	err := c.Loop.Run(ctx)
	<-stopped
	return err
}

// --- Reconcile ---

// Reconcile gives every Service what it is to have. The key is ignored.
func (c *Controller) Reconcile(ctx context.Context, _ types.NamespacedName) error {
	if err := c.fence.Check(allServices); err != nil {
		return err
	}
	services, err := c.services.List(labels.Everything())
	if err != nil {
		return err
	}
	objects, err := c.readPools()
	if err != nil {
		return err
	}
	pools, mistakes := usable(objects)
	outcomes := decide(pools, services)
	return errors.Join(c.carryOut(ctx, outcomes), c.report(ctx, objects, pools, mistakes, services))
}

// usable returns the pools without mistakes, and the mistakes of the others by
// their names.
func usable(objects []*api.LoadBalancerPool) ([]*pool, map[string]error) {
	var pools []*pool
	mistakes := map[string]error{}
	for _, object := range objects {
		if object.DeletionTimestamp != nil {
			continue
		}
		p, err := newPool(object)
		if err != nil {
			mistakes[object.Name] = err
			continue
		}
		pools = append(pools, p)
	}
	return pools, mistakes
}

// --- Effects ---

func (c *Controller) carryOut(ctx context.Context, outcomes []outcome) error {
	present := map[types.UID]bool{}
	for _, o := range outcomes {
		present[o.Service.UID] = true
		c.tell(o)
	}
	maps.DeleteFunc(c.told, func(uid types.UID, _ string) bool { return !present[uid] })
	return reconcile.Parallel(ctx, len(outcomes), func(ctx context.Context, i int) error {
		o := outcomes[i]
		err := c.write(ctx, o)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("load balancer addresses of Service %s: %w", nameOf(o.Service), err)
		}
		return nil
	})
}

// tell reports a problem as an event, once while it lasts.
func (c *Controller) tell(o outcome) {
	if c.told[o.Service.UID] != o.Problem && o.Problem != "" {
		c.events.Warning(o.Service, o.Reason, "%s", o.Problem)
	}
	c.told[o.Service.UID] = o.Problem
}

// write makes a Service say what was decided. What is in use is marked before
// and unmarked after it is in the status, so that a Service that goes away
// waits for its release. A status that somebody else wrote, with addresses of
// no pool, is left alone.
func (c *Controller) write(ctx context.Context, o outcome) error {
	svc := o.Service
	if !isHeld(svc) && len(o.Pools) == 0 {
		return nil
	}
	if len(o.Addresses) > 0 {
		marked, err := c.mark(ctx, svc, o.Pools)
		if err != nil {
			return err
		}
		svc = marked
	}
	svc, err := c.setStatus(ctx, svc, o.Addresses)
	if err == nil && (o.Release || len(o.Addresses) == 0) {
		err = c.unmark(ctx, svc)
	}
	return err
}

func (c *Controller) mark(ctx context.Context, svc *corev1.Service, pools []string) (*corev1.Service, error) {
	updated := svc.DeepCopy()
	if !slices.Contains(updated.Finalizers, Finalizer) {
		updated.Finalizers = append(updated.Finalizers, Finalizer)
	}
	metav1.SetMetaDataAnnotation(&updated.ObjectMeta, api.LoadBalancerPoolAnnotation, strings.Join(pools, ","))
	return c.update(ctx, svc, updated)
}

func (c *Controller) unmark(ctx context.Context, svc *corev1.Service) error {
	if !isHeld(svc) {
		return nil
	}
	updated := svc.DeepCopy()
	updated.Finalizers = slices.DeleteFunc(updated.Finalizers, func(f string) bool { return f == Finalizer })
	delete(updated.Annotations, api.LoadBalancerPoolAnnotation)
	_, err := c.update(ctx, svc, updated)
	return err
}

func (c *Controller) update(ctx context.Context, svc, updated *corev1.Service) (*corev1.Service, error) {
	if equality.Semantic.DeepEqual(svc.ObjectMeta, updated.ObjectMeta) {
		return svc, nil
	}
	written, err := c.client.CoreV1().Services(svc.Namespace).Update(ctx, updated, metav1.UpdateOptions{})
	if err == nil {
		c.fence.Wrote(allServices, c.store, written.ResourceVersion)
	}
	return written, err
}

func (c *Controller) setStatus(ctx context.Context, svc *corev1.Service, addrs []netip.Addr) (*corev1.Service, error) {
	var ingress []corev1.LoadBalancerIngress
	for _, addr := range addrs {
		ingress = append(ingress, corev1.LoadBalancerIngress{IP: addr.String(), IPMode: new(corev1.LoadBalancerIPModeVIP)})
	}
	if equality.Semantic.DeepEqual(svc.Status.LoadBalancer.Ingress, ingress) {
		return svc, nil
	}
	updated := svc.DeepCopy()
	updated.Status.LoadBalancer.Ingress = ingress
	written, err := c.client.CoreV1().Services(svc.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{})
	if err != nil {
		return nil, err
	}
	c.fence.Wrote(allServices, c.store, written.ResourceVersion)
	if len(addrs) > 0 {
		c.events.Normal(svc, reasonAssigned, "Assigned %v", addrs)
	}
	return written, nil
}
