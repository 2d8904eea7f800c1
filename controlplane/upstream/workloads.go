package upstream

import (
	"context"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/scale"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/disruption"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
	"k8s.io/kubernetes/pkg/controller/resourceclaim"
	"k8s.io/kubernetes/pkg/controller/servicecidrs"
	"k8s.io/kubernetes/pkg/controller/ttlafterfinished"
	resourcemetrics "k8s.io/metrics/pkg/client/clientset/versioned/typed/metrics/v1beta1"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/metrics/pkg/client/external_metrics"
)

func newDisruption(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("disruption-controller")
	if err != nil {
		return nil, err
	}
	scales, err := e.scales("disruption-controller")
	if err != nil {
		return nil, err
	}
	c := disruption.NewDisruptionController(ctx,
		e.informers.Core().V1().Pods(), e.informers.Policy().V1().PodDisruptionBudgets(),
		e.informers.Core().V1().ReplicationControllers(), e.informers.Apps().V1().ReplicaSets(),
		e.informers.Apps().V1().Deployments(), e.informers.Apps().V1().StatefulSets(),
		client, e.mapper, scales, client.Discovery())
	return func(ctx context.Context) { c.Run(ctx, 5) }, nil
}

// scales returns a client for the scale subresource of any kind.
func (e *env) scales(account string) (scale.ScalesGetter, error) {
	client, err := e.client(account)
	if err != nil {
		return nil, err
	}
	kinds := scale.NewDiscoveryScaleKindResolver(client.Discovery())
	return scale.NewForConfig(e.config(account), e.mapper, dynamic.LegacyAPIPathResolverFunc, kinds)
}

func newPodAutoscaler(ctx context.Context, e *env) (runFunc, error) {
	const account = "horizontal-pod-autoscaler"
	client, err := e.client(account)
	if err != nil {
		return nil, err
	}
	scales, err := e.scales(account)
	if err != nil {
		return nil, err
	}
	cfg := e.config(account)
	resources, err := resourcemetrics.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	external, err := external_metrics.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	versions := custom_metrics.NewAvailableAPIsGetter(client.Discovery())
	custom := custom_metrics.NewForConfig(cfg, e.mapper, versions)
	c := podautoscaler.NewHorizontalController(ctx, client.CoreV1(), scales, client.AutoscalingV2(), e.mapper,
		metrics.NewRESTMetricsClient(resources, custom, external),
		e.informers.Autoscaling().V2().HorizontalPodAutoscalers(), e.informers.Core().V1().Pods(),
		autoscalerPeriod, autoscalerDownscale, autoscalerTolerance, autoscalerCPUPeriod, autoscalerReadinessDelay)
	return together(
		func(ctx context.Context) {
			custom_metrics.PeriodicallyInvalidate(versions, autoscalerPeriod, ctx.Done())
		},
		func(ctx context.Context) { c.Run(ctx, 5) },
	), nil
}

func newTTLAfterFinished(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("ttl-after-finished-controller")
	if err != nil {
		return nil, err
	}
	c := ttlafterfinished.New(ctx, e.informers.Batch().V1().Jobs(), client)
	return func(ctx context.Context) { c.Run(ctx, 5) }, nil
}

func newResourceClaim(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("resource-claim-controller")
	if err != nil {
		return nil, err
	}
	c, err := resourceclaim.NewController(klog.FromContext(ctx), client, e.informers.Core().V1().Pods(),
		e.informers.Scheduling().V1beta1().PodGroups(),
		e.informers.Resource().V1().ResourceClaims(), e.informers.Resource().V1().ResourceClaimTemplates())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 10) }, nil
}

func newServiceCIDR(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("service-cidrs-controller")
	if err != nil {
		return nil, err
	}
	c := servicecidrs.NewController(ctx, e.informers.Networking().V1().ServiceCIDRs(),
		e.informers.Networking().V1().IPAddresses(), client)
	return func(ctx context.Context) { c.Run(ctx, 5) }, nil
}
