// Package ingressaccess lets nodes read the TLS Secrets that Weft's Ingresses
// name, and no others: in each namespace with such Ingresses it keeps a Role
// and a RoleBinding, both named weft:ingress-certificates, for the group of nodes.
package ingressaccess

import (
	"context"
	"errors"
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	rbaclisters "k8s.io/client-go/listers/rbac/v1"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/controlplane/reconcile"
)

// Name is the name of the Roles and RoleBindings.
const Name = "weft:ingress-certificates"

// Controller keeps the Roles. Its keys are namespaces.
type Controller struct {
	*reconcile.Loop
	client       kubernetes.Interface
	ingresses    networkinglisters.IngressLister
	classes      networkinglisters.IngressClassLister
	roles        rbaclisters.RoleLister
	roleStore    reconcile.Store
	bindings     rbaclisters.RoleBindingLister
	bindingStore reconcile.Store
	fence        reconcile.Fence
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	ingresses := env.Informers.Networking().V1().Ingresses()
	classes := env.Informers.Networking().V1().IngressClasses()
	roles := env.Informers.Rbac().V1().Roles()
	bindings := env.Informers.Rbac().V1().RoleBindings()
	c := &Controller{
		client:       env.Client,
		ingresses:    ingresses.Lister(),
		classes:      classes.Lister(),
		roles:        roles.Lister(),
		roleStore:    roles.Informer().GetStore(),
		bindings:     bindings.Lister(),
		bindingStore: bindings.Informer().GetStore(),
	}
	c.Loop = env.NewLoop(reconcile.Config{Workers: 2, Reconcile: c.Reconcile})
	return c, errors.Join(
		c.watchNamespaces(ingresses.Informer(), func(metav1.Object) bool { return true }),
		c.watchNamespaces(roles.Informer(), isNamed),
		c.watchNamespaces(bindings.Informer(), isNamed),
		c.Watch(classes.Informer(), func(reconcile.Change) { c.classesChanged() }),
	)
}

func isNamed(object metav1.Object) bool { return object.GetName() == Name }

// watchNamespaces queues the namespace of every change that matters.
func (c *Controller) watchNamespaces(informer cache.SharedIndexInformer, matters func(metav1.Object) bool) error {
	return c.Watch(informer, func(change reconcile.Change) {
		object := change.After
		if object == nil {
			object = change.Before
		}
		if matters(object) {
			c.Add(types.NamespacedName{Name: object.GetNamespace()})
		}
	})
}

func (c *Controller) classesChanged() {
	all, _ := c.ingresses.List(labels.Everything()) // reads a cache: no error
	for _, ingress := range all {
		c.Add(types.NamespacedName{Name: ingress.Namespace})
	}
}

// --- Reconcile ---

// Reconcile makes the Role and RoleBinding of one namespace right.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	if err := c.fence.Check(key); err != nil {
		return err
	}
	namespace := key.Name
	ingresses, err := c.ingresses.Ingresses(namespace).List(labels.Everything())
	if err != nil {
		return err
	}
	classes, err := c.classes.List(labels.Everything())
	if err != nil {
		return err
	}
	secrets := decide(ingresses, classes)
	if len(secrets) == 0 {
		return c.remove(ctx, namespace)
	}
	return c.ensure(ctx, key, secrets)
}

// --- The decision ---

// decide returns the names, sorted, of the Secrets that Ingresses of Weft's
// classes use for TLS.
func decide(ingresses []*networkingv1.Ingress, classes []*networkingv1.IngressClass) []string {
	ours, byDefault := ourClasses(classes)
	names := map[string]bool{}
	for _, ingress := range ingresses {
		if !ours[className(ingress, byDefault)] {
			continue
		}
		for _, tls := range ingress.Spec.TLS {
			if tls.SecretName != "" {
				names[tls.SecretName] = true
			}
		}
	}
	return sortedKeys(names)
}

// --- Effects ---

func (c *Controller) ensure(ctx context.Context, key types.NamespacedName, secrets []string) error {
	namespace := key.Name
	if err := c.ensureRole(ctx, key, role(namespace, secrets)); err != nil && !reconcile.IsNamespaceTerminating(err) {
		return fmt.Errorf("write role: %w", err)
	}
	want := binding(namespace)
	have, err := c.bindings.RoleBindings(namespace).Get(Name)
	if err == nil && have.RoleRef == want.RoleRef && equality.Semantic.DeepEqual(have.Subjects, want.Subjects) {
		return nil
	}
	api := c.client.RbacV1().RoleBindings(namespace)
	if err == nil { // roleRef cannot be edited: replace what somebody changed
		if err := api.Delete(ctx, Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("replace role binding: %w", err)
		}
	}
	written, err := api.Create(ctx, want, metav1.CreateOptions{})
	if err != nil {
		if reconcile.IsNamespaceTerminating(err) {
			return nil
		}
		return fmt.Errorf("write role binding: %w", err)
	}
	c.fence.Wrote(key, c.bindingStore, written.ResourceVersion)
	return nil
}

func (c *Controller) ensureRole(ctx context.Context, key types.NamespacedName, want *rbacv1.Role) error {
	api := c.client.RbacV1().Roles(want.Namespace)
	have, err := c.roles.Roles(want.Namespace).Get(Name)
	var written *rbacv1.Role
	switch {
	case apierrors.IsNotFound(err):
		written, err = api.Create(ctx, want, metav1.CreateOptions{})
	case err != nil:
		return err
	case equality.Semantic.DeepEqual(have.Rules, want.Rules):
		return nil
	default:
		updated := *have
		updated.Rules = want.Rules
		written, err = api.Update(ctx, &updated, metav1.UpdateOptions{})
	}
	if err != nil {
		return err
	}
	c.fence.Wrote(key, c.roleStore, written.ResourceVersion)
	return nil
}

// remove takes both away, as far as they are there.
func (c *Controller) remove(ctx context.Context, namespace string) error {
	var errs []error
	if _, err := c.bindings.RoleBindings(namespace).Get(Name); err == nil {
		errs = append(errs, c.client.RbacV1().RoleBindings(namespace).Delete(ctx, Name, metav1.DeleteOptions{}))
	}
	if _, err := c.roles.Roles(namespace).Get(Name); err == nil {
		errs = append(errs, c.client.RbacV1().Roles(namespace).Delete(ctx, Name, metav1.DeleteOptions{}))
	}
	for i, err := range errs {
		if apierrors.IsNotFound(err) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}
