// Package website is an example of a custom resource and its controller: a
// Website becomes a ConfigMap, a Deployment and a Service. It runs outside of
// the cluster, on the same kit as Weft's own controllers.
//
//	Website ──informer──► queue ──► read ──► decide (pure) ──► apply children, write status
//	   ▲                                                             │
//	   └── API server ──ConversionReview──► webhook (v1 ⇄ v1alpha1)  ▼ owner references: deleted with it
package website

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/controlplane/reconcile"
)

// manager owns the fields that this controller applies.
const manager = "website-controller"

var (
	websites = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "websites"}
	crds     = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

	//go:embed crd.yaml
	crdYAML []byte
)

// controller keeps the children of Websites.
type controller struct {
	*reconcile.Loop
	client      kubernetes.Interface
	sites       dynamic.NamespaceableResourceInterface
	siteStore   cache.Store
	deployments cache.Store
}

// Run installs the resource and works until ctx is done. The API server must
// reach this process at address, where it serves the conversion webhook.
func Run(ctx context.Context, config *rest.Config, address netip.Addr) error {
	dynamicClient, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	hook, err := startWebhook(address)
	if err != nil {
		return err
	}
	defer hook.Close()
	if err := install(ctx, dynamicClient, hook); err != nil {
		return err
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	custom := dynamicinformer.NewDynamicSharedInformerFactory(dynamicClient, 0)
	siteInformer := custom.ForResource(websites).Informer()
	deployments := shared.Apps().V1().Deployments().Informer()
	c := &controller{
		client: client, sites: dynamicClient.Resource(websites),
		siteStore: siteInformer.GetStore(), deployments: deployments.GetStore(),
	}
	c.Loop = reconcile.NewLoop(reconcile.Config{Name: manager, Reconcile: c.reconcile})
	if err := c.WatchSelf(siteInformer); err != nil {
		return err
	}
	noOrphans := func(metav1.Object) []types.NamespacedName { return nil }
	if err := c.WatchOwned(deployments, "Website", noOrphans); err != nil {
		return err
	}
	shared.Start(ctx.Done())
	defer shared.Shutdown()
	custom.Start(ctx.Done())
	defer custom.Shutdown()
	return c.Run(ctx)
}

// reconcile brings one Website a step closer to its spec. It is safe to repeat.
func (c *controller) reconcile(ctx context.Context, key types.NamespacedName) error {
	item, exists, err := c.siteStore.GetByKey(key.String())
	if err != nil || !exists {
		return err // gone: the garbage collector takes the children
	}
	site := item.(*unstructured.Unstructured)
	if site.GetDeletionTimestamp() != nil {
		return nil
	}
	if err := c.apply(ctx, key.Namespace, decide(site)); err != nil {
		return err
	}
	return c.writeStatus(ctx, site)
}

func (c *controller) apply(ctx context.Context, namespace string, want children) error {
	options := metav1.ApplyOptions{FieldManager: manager, Force: true}
	if _, err := c.client.CoreV1().ConfigMaps(namespace).Apply(ctx, want.Config, options); err != nil {
		return fmt.Errorf("apply ConfigMap: %w", err)
	}
	if _, err := c.client.AppsV1().Deployments(namespace).Apply(ctx, want.Deployment, options); err != nil {
		return fmt.Errorf("apply Deployment: %w", err)
	}
	if _, err := c.client.CoreV1().Services(namespace).Apply(ctx, want.Service, options); err != nil {
		return fmt.Errorf("apply Service: %w", err)
	}
	return nil
}

// writeStatus reports what the Deployment has, when it has changed.
func (c *controller) writeStatus(ctx context.Context, site *unstructured.Unstructured) error {
	status := map[string]any{
		"observedGeneration": site.GetGeneration(),
		"selector":           labels.SelectorFromSet(labelsOf(site)).String(),
		"replicas":           int64(0), "readyReplicas": int64(0),
	}
	if item, exists, err := c.deployments.GetByKey(site.GetNamespace() + "/" + site.GetName()); err == nil && exists {
		have := item.(*appsv1.Deployment).Status
		status["replicas"], status["readyReplicas"] = int64(have.Replicas), int64(have.ReadyReplicas)
	}
	if equality.Semantic.DeepEqual(site.Object["status"], any(status)) {
		return nil
	}
	updated := site.DeepCopy() // the informer's objects are never changed
	updated.Object["status"] = status
	_, err := c.sites.Namespace(site.GetNamespace()).UpdateStatus(ctx, updated, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// install applies the CustomResourceDefinition with the webhook's address, and
// waits until the API server serves it.
func install(ctx context.Context, client dynamic.Interface, hook *webhook) error {
	definition, err := hook.definition()
	if err != nil {
		return err
	}
	options := metav1.ApplyOptions{FieldManager: manager, Force: true}
	if _, err := client.Resource(crds).Apply(ctx, definition.GetName(), definition, options); err != nil {
		return fmt.Errorf("apply CustomResourceDefinition: %w", err)
	}
	for {
		_, err := client.Resource(websites).List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the resource to be served: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
