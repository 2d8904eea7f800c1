package upstream

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsscheme "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/scheme"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/klog/v2"
	pkgcontroller "k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	namespacecontroller "k8s.io/kubernetes/pkg/controller/namespace"
	resourcequotacontroller "k8s.io/kubernetes/pkg/controller/resourcequota"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/controller/validatingadmissionpolicystatus"
	"k8s.io/kubernetes/pkg/generated/openapi"
	quotainstall "k8s.io/kubernetes/pkg/quota/v1/install"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"k8s.io/utils/clock"
)

// discoveryPeriod is how soon a new resource is garbage collected and counted.
const discoveryPeriod = 30 * time.Second

func newNamespace(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("namespace-controller")
	if err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfig(e.config("namespace-controller"))
	if err != nil {
		return nil, err
	}
	c := namespacecontroller.NewNamespaceController(ctx, client, metadataClient,
		client.Discovery().ServerPreferredNamespacedResources,
		e.informers.Core().V1().Namespaces(), 5*time.Minute, corev1.FinalizerKubernetes)
	return func(ctx context.Context) { c.Run(ctx, 10) }, nil
}

func newServiceAccount(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("service-account-controller")
	if err != nil {
		return nil, err
	}
	c, err := serviceaccountcontroller.NewServiceAccountsController(klog.FromContext(ctx),
		e.informers.Core().V1().ServiceAccounts(), e.informers.Core().V1().Namespaces(), client,
		serviceaccountcontroller.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

// newServiceAccountToken acts as kube-controller-manager itself, as upstream's
// does: no service account may have the right to mint tokens for all others.
func newServiceAccountToken(ctx context.Context, e *env) (runFunc, error) {
	key, err := keyutil.PrivateKeyFromFile(e.ServiceAccountKeyFile)
	if err != nil {
		return nil, fmt.Errorf("read service-account key: %w", err)
	}
	generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, key)
	if err != nil {
		return nil, fmt.Errorf("make token generator: %w", err)
	}
	client, err := kubernetes.NewForConfig(AsUser(e.Loopback, ControllerManagerUser))
	if err != nil {
		return nil, err
	}
	c, err := serviceaccountcontroller.NewTokensController(klog.FromContext(ctx),
		e.informers.Core().V1().ServiceAccounts(), e.informers.Core().V1().Secrets(), client,
		serviceaccountcontroller.TokensControllerOptions{TokenGenerator: generator, RootCA: e.RootCA})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 5) }, nil
}

func newLegacyTokenCleaner(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("legacy-service-account-token-cleaner")
	if err != nil {
		return nil, err
	}
	c, err := serviceaccountcontroller.NewLegacySATokenCleaner(
		e.informers.Core().V1().ServiceAccounts(), e.informers.Core().V1().Secrets(), e.informers.Core().V1().Pods(),
		client, clock.RealClock{}, serviceaccountcontroller.LegacySATokenCleanerOptions{
			CleanUpPeriod: 365 * 24 * time.Hour,
			SyncInterval:  serviceaccountcontroller.DefaultCleanerSyncInterval,
		})
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

func newRootCAPublisher(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("root-ca-cert-publisher")
	if err != nil {
		return nil, err
	}
	c, err := rootcacertpublisher.NewPublisher(
		e.informers.Core().V1().ConfigMaps(), e.informers.Core().V1().Namespaces(), client, e.RootCA)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newClusterRoleAggregation(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("clusterrole-aggregation-controller")
	if err != nil {
		return nil, err
	}
	c := clusterroleaggregation.NewClusterRoleAggregation(e.informers.Rbac().V1().ClusterRoles(), client.RbacV1())
	return func(ctx context.Context) { c.Run(ctx, 5) }, nil
}

func newResourceQuota(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("resourcequota-controller")
	if err != nil {
		return nil, err
	}
	discover := client.Discovery().ServerPreferredNamespacedResources
	lister := generic.ListerFuncForResourceFunc(e.informers.ForResource)
	quota, err := quotainstall.NewQuotaConfigurationForControllers(lister, e.informers)
	if err != nil {
		return nil, err
	}
	c, err := resourcequotacontroller.NewController(ctx, &resourcequotacontroller.ControllerOptions{
		QuotaClient:               client.CoreV1(),
		ResourceQuotaInformer:     e.informers.Core().V1().ResourceQuotas(),
		ResyncPeriod:              pkgcontroller.StaticResyncPeriodFunc(5 * time.Minute),
		InformerFactory:           e.anyInformers,
		ReplenishmentResyncPeriod: resync,
		DiscoveryFunc:             discover,
		IgnoredResourcesFunc:      quota.IgnoredResources,
		InformersStarted:          e.started,
		Registry:                  generic.NewRegistry(quota.Evaluators()),
		UpdateFilter:              quotainstall.DefaultUpdateFilter(),
	})
	if err != nil {
		return nil, err
	}
	return together(
		func(ctx context.Context) { c.Run(ctx, 5) },
		func(ctx context.Context) { c.Sync(ctx, discover, discoveryPeriod) },
	), nil
}

func newGarbageCollector(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("generic-garbage-collector")
	if err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfig(e.config("generic-garbage-collector"))
	if err != nil {
		return nil, err
	}
	c, err := garbagecollector.NewComposedGarbageCollector(ctx, client, metadataClient, e.mapper, e.graph)
	if err != nil {
		return nil, err
	}
	return together(
		func(ctx context.Context) { c.Run(ctx, 20, discoveryPeriod) },
		func(ctx context.Context) { c.Sync(ctx, client.Discovery(), discoveryPeriod) },
	), nil
}

func newAdmissionPolicyStatus(ctx context.Context, e *env) (runFunc, error) {
	client, err := e.client("validatingadmissionpolicy-status-controller")
	if err != nil {
		return nil, err
	}
	schemas := resolver.NewDefinitionsSchemaResolver(openapi.GetOpenAPIDefinitions, scheme.Scheme, apiextensionsscheme.Scheme).
		Combine(&resolver.ClientDiscoveryResolver{Discovery: client.Discovery()})
	c, err := validatingadmissionpolicystatus.NewController(
		e.informers.Admissionregistration().V1().ValidatingAdmissionPolicies(),
		client.AdmissionregistrationV1().ValidatingAdmissionPolicies(),
		&validating.TypeChecker{SchemaResolver: schemas, RestMapper: e.mapper})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 5) }, nil
}
