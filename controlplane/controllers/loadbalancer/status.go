package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"weft.dev/weft/controlplane/api"
)

const (
	conditionReady = "Ready"
	reasonValid    = "Valid"
	reasonMistake  = "InvalidSpec"
)

// readPools returns the pools of the cache, by name. They are copies.
func (c *Controller) readPools() ([]*api.LoadBalancerPool, error) {
	var pools []*api.LoadBalancerPool
	for _, item := range c.informer.GetStore().List() {
		p := &api.LoadBalancerPool{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.(*unstructured.Unstructured).Object, p); err != nil {
			return nil, fmt.Errorf("read LoadBalancerPool: %w", err)
		}
		pools = append(pools, p)
	}
	slices.SortFunc(pools, func(a, b *api.LoadBalancerPool) int { return strings.Compare(a.Name, b.Name) })
	return pools, nil
}

// poolStatus is what a pool's status is to be, with the addresses that are
// taken. p is nil if the pool has a mistake.
func poolStatus(object *api.LoadBalancerPool, p *pool, mistake error, taken map[netip.Addr]string) api.LoadBalancerPoolStatus {
	s := api.LoadBalancerPoolStatus{ObservedGeneration: object.Generation, Conditions: slices.Clone(object.Status.Conditions)}
	ready := metav1.Condition{
		Type: conditionReady, Status: metav1.ConditionTrue, Reason: reasonValid, ObservedGeneration: object.Generation,
		Message: "Addresses can be allocated",
	}
	if mistake != nil {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, reasonMistake, mistake.Error()
	}
	meta.SetStatusCondition(&s.Conditions, ready)
	if p == nil {
		return s
	}
	for addr := range taken {
		if p.contains(addr) {
			s.Allocated++
		}
	}
	s.Available = p.size() - s.Allocated
	return s
}

// report writes the status of each pool that says something else.
func (c *Controller) report(ctx context.Context, objects []*api.LoadBalancerPool, pools []*pool, mistakes map[string]error, services []*corev1.Service) error {
	taken := takenBy(services)
	var errs []error
	for _, object := range objects {
		if object.DeletionTimestamp != nil {
			continue
		}
		var p *pool
		if i := slices.IndexFunc(pools, func(p *pool) bool { return p.name == object.Name }); i >= 0 {
			p = pools[i]
		}
		status := poolStatus(object, p, mistakes[object.Name], taken)
		if !equality.Semantic.DeepEqual(status, object.Status) {
			errs = append(errs, c.writePool(ctx, object, status))
		}
	}
	return errors.Join(errs...)
}

func (c *Controller) writePool(ctx context.Context, object *api.LoadBalancerPool, status api.LoadBalancerPoolStatus) error {
	object.Status = status
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return err
	}
	_, err = c.pools.UpdateStatus(ctx, &unstructured.Unstructured{Object: content}, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("status of LoadBalancerPool %s: %w", object.Name, err)
	}
	return nil
}
