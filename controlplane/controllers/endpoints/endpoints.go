// Package endpoints publishes the pods that a Service selects as an Endpoints
// object of the Service's name. That API is deprecated, and nothing in Weft
// reads it, but programs do. It knows one address family, and at most 1000 addresses.
package endpoints

//lint:file-ignore SA1019 programs still read Endpoints

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/endpointslice/util"

	"weft.dev/weft/controlplane/controllers/endpointslice"
	"weft.dev/weft/controlplane/reconcile"
)

const (
	// managedByLabel marks Endpoints that were made here, under upstream's name
	// of this controller.
	managedByLabel = "endpoints.kubernetes.io/managed-by"
	managedBy      = "endpoint-controller"
	// truncated is the value of the annotation of Endpoints that are not whole.
	truncated = "truncated"
)

// Controller keeps the Endpoints of Services with a selector.
type Controller struct {
	*reconcile.Loop
	client    kubernetes.Interface
	events    *reconcile.Events
	services  corelisters.ServiceLister
	pods      corelisters.PodLister
	endpoints corelisters.EndpointsLister
	store     reconcile.Store
	fence     reconcile.Fence
	triggers  *util.TriggerTimeTracker

	mu   sync.Mutex
	gone map[types.NamespacedName]bool // Services that were seen to be deleted
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	services := env.Informers.Core().V1().Services()
	pods := env.Informers.Core().V1().Pods()
	endpoints := env.Informers.Core().V1().Endpoints()
	c := &Controller{
		client:    env.Client,
		events:    env.NewEvents(),
		services:  services.Lister(),
		pods:      pods.Lister(),
		endpoints: endpoints.Lister(),
		store:     endpoints.Informer().GetStore(),
		triggers:  util.NewTriggerTimeTracker(),
		gone:      map[types.NamespacedName]bool{},
	}
	c.Loop = env.NewLoop(reconcile.Config{Reconcile: c.Reconcile, Events: c.events})
	return c, errors.Join(
		c.Watch(services.Informer(), c.serviceChanged),
		c.Watch(pods.Informer(), c.podChanged),
		c.WatchSelf(endpoints.Informer()),
	)
}

func (c *Controller) serviceChanged(change reconcile.Change) {
	if change.After != nil {
		c.Add(reconcile.KeyOf(change.After))
		return
	}
	key := reconcile.KeyOf(change.Before)
	c.setGone(key, true)
	c.Add(key)
}

func (c *Controller) podChanged(change reconcile.Change) {
	for _, key := range endpointslice.ServicesOf(c.services, change) {
		c.Add(key)
	}
}

func (c *Controller) setGone(key types.NamespacedName, gone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gone {
		c.gone[key] = true
	} else {
		delete(c.gone, key)
	}
}

func (c *Controller) isGone(key types.NamespacedName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone[key]
}

// --- Reconcile ---

// Reconcile makes the Endpoints of one Service equal to the pods it selects.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	if err := c.fence.Check(key); err != nil {
		return err
	}
	current, err := c.endpoints.Endpoints(key.Namespace).Get(key.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	service, err := c.services.Services(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		return c.withoutService(ctx, key, current)
	}
	if err != nil {
		return err
	}
	c.setGone(key, false)
	if service.Spec.Type == corev1.ServiceTypeExternalName || service.Spec.Selector == nil {
		return nil // somebody else's
	}
	pods, err := c.pods.Pods(service.Namespace).List(labels.SelectorFromSet(service.Spec.Selector))
	if err != nil {
		return err
	}
	trigger := c.triggers.ComputeEndpointLastChangeTriggerTime(service.Namespace, service, pods)
	if want := decide(service, pods, current, trigger); want != nil {
		return c.write(ctx, key, want)
	}
	return nil
}

// withoutService deletes Endpoints that were made here, and those of a Service
// that was seen to go, whoever made them. Endpoints that never had a Service stay.
func (c *Controller) withoutService(ctx context.Context, key types.NamespacedName, current *corev1.Endpoints) error {
	c.triggers.DeleteService(key.Namespace, key.Name)
	if current != nil && (c.isGone(key) || current.Labels[managedByLabel] == managedBy) {
		options := metav1.NewPreconditionDeleteOptions(string(current.UID))
		options.Preconditions.ResourceVersion = &current.ResourceVersion
		err := c.client.CoreV1().Endpoints(key.Namespace).Delete(ctx, key.Name, *options)
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete endpoints without service: %w", err)
		}
	}
	c.setGone(key, false)
	c.fence.Forget(key)
	return nil
}

// decide returns the Endpoints to write, nil if current is right. current is
// nil if there are none. trigger is when the change began that led here, zero
// if unknown.
func decide(service *corev1.Service, pods []*corev1.Pod, current *corev1.Endpoints, trigger time.Time) *corev1.Endpoints {
	want := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: service.Namespace, Name: service.Name}}
	if current != nil {
		want = current.DeepCopy()
	}
	var isCut bool
	want.Subsets, isCut = truncate(subsetsOf(service, pods))
	want.Labels = labelsOf(service)
	if want.Annotations == nil {
		want.Annotations = map[string]string{}
	}
	delete(want.Annotations, corev1.EndpointsOverCapacity)
	if isCut {
		want.Annotations[corev1.EndpointsOverCapacity] = truncated
	}
	if current != nil && areEqual(current.Subsets, want.Subsets) &&
		maps.Equal(current.Labels, want.Labels) && maps.Equal(current.Annotations, want.Annotations) {
		return nil
	}
	delete(want.Annotations, corev1.EndpointsLastChangeTriggerTime)
	if !trigger.IsZero() {
		want.Annotations[corev1.EndpointsLastChangeTriggerTime] = trigger.UTC().Format(time.RFC3339Nano)
	}
	return want
}

// areEqual reports whether have says the same as want, which is canonical.
// Other controllers may have written it in another order.
func areEqual(have, want []corev1.EndpointSubset) bool {
	return equality.Semantic.DeepEqual(have, want) || equality.Semantic.DeepEqual(Canonical(have), want)
}

// labelsOf returns the labels of the service's Endpoints: its own and ours.
func labelsOf(service *corev1.Service) map[string]string {
	result := map[string]string{}
	maps.Copy(result, service.Labels)
	delete(result, corev1.IsHeadlessService)
	if service.Spec.ClusterIP == corev1.ClusterIPNone || service.Spec.ClusterIP == "" {
		result[corev1.IsHeadlessService] = ""
	}
	result[managedByLabel] = managedBy
	return result
}

// --- Effects ---

func (c *Controller) write(ctx context.Context, key types.NamespacedName, want *corev1.Endpoints) error {
	api := c.client.CoreV1().Endpoints(want.Namespace)
	var written *corev1.Endpoints
	var err error
	reason, doing := "FailedToUpdateEndpoint", "update endpoint"
	if want.ResourceVersion == "" {
		reason, doing = "FailedToCreateEndpoint", "create endpoint for service"
		written, err = api.Create(ctx, want, metav1.CreateOptions{})
	} else {
		written, err = api.Update(ctx, want, metav1.UpdateOptions{})
	}
	switch {
	case err == nil:
		c.fence.Wrote(key, c.store, written.ResourceVersion)
		return nil
	case reconcile.IsNamespaceTerminating(err):
		return nil
	case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err): // else the cache is behind
		c.events.Warning(want, reason, "Failed to %s %v/%v: %v", doing, want.Namespace, want.Name, err)
	}
	return fmt.Errorf("write endpoints: %w", err)
}
