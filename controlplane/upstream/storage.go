package upstream

import (
	"context"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/volume/ephemeral"
	"k8s.io/kubernetes/pkg/controller/volume/persistentvolume"
	"k8s.io/kubernetes/pkg/controller/volume/pvcprotection"
	"k8s.io/kubernetes/pkg/controller/volume/pvprotection"
	"k8s.io/kubernetes/pkg/controller/volume/vacprotection"
)

// newVolumeBinder has no volume plugins: volumes are provisioned and deleted by
// whoever owns their StorageClass, never by the control plane's own process.
func newVolumeBinder(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("persistent-volume-binder")
	if err != nil {
		return nil, err
	}
	c, err := persistentvolume.NewController(ctx, persistentvolume.ControllerParameters{
		KubeClient:                client,
		SyncPeriod:                volumeBinderPeriod,
		VolumeInformer:            e.informers.Core().V1().PersistentVolumes(),
		ClaimInformer:             e.informers.Core().V1().PersistentVolumeClaims(),
		ClassInformer:             e.informers.Storage().V1().StorageClasses(),
		PodInformer:               e.informers.Core().V1().Pods(),
		NodeInformer:              e.informers.Core().V1().Nodes(),
		EnableDynamicProvisioning: true,
	})
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

func newVolumeProtection(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("pv-protection-controller")
	if err != nil {
		return nil, err
	}
	c, err := pvprotection.NewPVProtectionController(klog.FromContext(ctx), e.informers.Core().V1().PersistentVolumes(), client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newClaimProtection(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("pvc-protection-controller")
	if err != nil {
		return nil, err
	}
	c, err := pvcprotection.NewPVCProtectionController(klog.FromContext(ctx),
		e.informers.Core().V1().PersistentVolumeClaims(), e.informers.Core().V1().Pods(), client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newEphemeralVolume(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("ephemeral-volume-controller")
	if err != nil {
		return nil, err
	}
	c, err := ephemeral.NewController(ctx, client,
		e.informers.Core().V1().Pods(), e.informers.Core().V1().PersistentVolumeClaims())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 5) }, nil
}

func newAttributesProtection(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("volumeattributesclass-protection-controller")
	if err != nil {
		return nil, err
	}
	c, err := vacprotection.NewVACProtectionController(klog.FromContext(ctx), client,
		e.informers.Core().V1().PersistentVolumeClaims(), e.informers.Core().V1().PersistentVolumes(),
		e.informers.Storage().V1().VolumeAttributesClasses())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}
