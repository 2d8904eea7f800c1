package upstream

import (
	"context"
	"time"

	"k8s.io/kubernetes/pkg/controller/bootstrap"
	"k8s.io/kubernetes/pkg/controller/certificates/approver"
	"k8s.io/kubernetes/pkg/controller/certificates/cleaner"
	"k8s.io/kubernetes/pkg/controller/certificates/signer"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/podgc"
	"k8s.io/kubernetes/pkg/controller/tainteviction"
	"k8s.io/utils/clock"
)

func newCSRApprover(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("certificate-controller")
	if err != nil {
		return nil, err
	}
	c := approver.NewCSRApprovingController(ctx, client, e.informers.Certificates().V1().CertificateSigningRequests())
	return func(ctx context.Context) { c.Run(ctx, 5) }, nil
}

// newCSRSigner signs for all of the built-in signers with the cluster CA.
func newCSRSigner(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("certificate-controller")
	if err != nil {
		return nil, err
	}
	csrs := e.informers.Certificates().V1().CertificateSigningRequests()
	serving, err := signer.NewKubeletServingCSRSigningController(ctx, client, csrs, e.CACertFile, e.CAKeyFile, e.SigningDuration)
	if err != nil {
		return nil, err
	}
	nodeClient, err := signer.NewKubeletClientCSRSigningController(ctx, client, csrs, e.CACertFile, e.CAKeyFile, e.SigningDuration)
	if err != nil {
		return nil, err
	}
	userClient, err := signer.NewKubeAPIServerClientCSRSigningController(ctx, client, csrs, e.CACertFile, e.CAKeyFile, e.SigningDuration)
	if err != nil {
		return nil, err
	}
	legacy, err := signer.NewLegacyUnknownCSRSigningController(ctx, client, csrs, e.CACertFile, e.CAKeyFile, e.SigningDuration)
	if err != nil {
		return nil, err
	}
	return together(
		func(ctx context.Context) { serving.Run(ctx, 5) },
		func(ctx context.Context) { nodeClient.Run(ctx, 5) },
		func(ctx context.Context) { userClient.Run(ctx, 5) },
		func(ctx context.Context) { legacy.Run(ctx, 5) },
	), nil
}

func newCSRCleaner(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("certificate-controller")
	if err != nil {
		return nil, err
	}
	c := cleaner.NewCSRCleanerController(client.CertificatesV1().CertificateSigningRequests(),
		e.informers.Certificates().V1().CertificateSigningRequests())
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

// What no signer has answered in podCertificateTime is forgotten, as upstream's
// own controller manager does; it is looked for every podCertificateInterval.
const (
	podCertificateTime     = 15 * time.Minute
	podCertificateInterval = 5 * time.Minute
)

func newPodCertificateCleaner(_ context.Context, e *env) (runFunc, error) {
	client, err := e.client("podcertificaterequestcleaner")
	if err != nil {
		return nil, err
	}
	c := cleaner.NewPCRCleanerController(client, e.informers.Certificates().V1().PodCertificateRequests(),
		clock.RealClock{}, podCertificateTime, podCertificateInterval)
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newBootstrapSigner(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("bootstrap-signer")
	if err != nil {
		return nil, err
	}
	c, err := bootstrap.NewSigner(client, e.informers.Core().V1().Secrets(), e.informers.Core().V1().ConfigMaps(),
		bootstrap.DefaultSignerOptions())
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

func newTokenCleaner(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("token-cleaner")
	if err != nil {
		return nil, err
	}
	c, err := bootstrap.NewTokenCleaner(client, e.informers.Core().V1().Secrets(), bootstrap.DefaultTokenCleanerOptions())
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

// newNodeLifecycle uses upstream's defaults (pkg/controller/nodelifecycle/config
// and cmd/kube-controller-manager/app/options) but for the grace period.
func newNodeLifecycle(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("node-controller")
	if err != nil {
		return nil, err
	}
	c, err := nodelifecycle.NewNodeLifecycleController(ctx,
		e.informers.Coordination().V1().Leases(), e.informers.Core().V1().Pods(),
		e.informers.Core().V1().Nodes(), e.informers.Apps().V1().DaemonSets(), client,
		nodeMonitorPeriod, nodeStartupGracePeriod, e.NodeMonitorGracePeriod,
		nodeEvictionRate, secondaryNodeEvictionRate, largeClusterSize, unhealthyZoneThreshold)
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

func newTaintEviction(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("node-controller")
	if err != nil {
		return nil, err
	}
	c, err := tainteviction.New(ctx, client, e.informers.Core().V1().Pods(), e.informers.Core().V1().Nodes(),
		"taint-eviction-controller")
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

func newPodGC(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("pod-garbage-collector")
	if err != nil {
		return nil, err
	}
	c := podgc.NewPodGC(ctx, client, e.informers.Core().V1().Pods(), e.informers.Core().V1().Nodes(), terminatedPods)
	return c.Run, nil
}
