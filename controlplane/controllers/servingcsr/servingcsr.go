// Package servingcsr approves the certificates that nodes serve port 10250
// with. Upstream leaves this to administrators, because the API server alone
// cannot know which names and addresses a node may speak for; Weft's own agent
// reports them in Node.status, and a request is approved exactly when it asks
// for nothing else. Whatever does not qualify is left for somebody else.
package servingcsr

import (
	"context"
	"errors"
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	certificateslisters "k8s.io/client-go/listers/certificates/v1"
	corelisters "k8s.io/client-go/listers/core/v1"

	"weft.dev/weft/controlplane/reconcile"
)

// Controller approves serving certificates of nodes.
type Controller struct {
	*reconcile.Loop
	client   kubernetes.Interface
	requests certificateslisters.CertificateSigningRequestLister
	nodes    corelisters.NodeLister
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	requests := env.Informers.Certificates().V1().CertificateSigningRequests()
	nodes := env.Informers.Core().V1().Nodes()
	c := &Controller{client: env.Client, requests: requests.Lister(), nodes: nodes.Lister()}
	c.Loop = env.NewLoop(reconcile.Config{Workers: 2, Reconcile: c.Reconcile})
	return c, errors.Join(
		c.WatchSelf(requests.Informer()),
		c.Watch(nodes.Informer(), c.nodeChanged),
	)
}

// nodeChanged looks again at what the node has asked for: its addresses may
// have arrived after the request.
func (c *Controller) nodeChanged(change reconcile.Change) {
	if change.After == nil {
		return
	}
	all, _ := c.requests.List(labels.Everything()) // reads a cache: no error
	for _, request := range all {
		if isPending(request) && request.Spec.Username == userPrefix+change.After.GetName() {
			c.Add(reconcile.KeyOf(request))
		}
	}
}

// --- Reconcile ---

// Reconcile approves one request, if it qualifies.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	request, err := c.requests.Get(key.Name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !isPending(request) || request.Spec.SignerName != certificatesv1.KubeletServingSignerName {
		return nil
	}
	node, err := c.nodes.Get(strings.TrimPrefix(request.Spec.Username, userPrefix))
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if reason := decide(request, node); reason != nil {
		c.Log().Info("serving certificate not approved", "request", request.Name, "user", request.Spec.Username, "reason", reason)
		return nil
	}
	return c.approve(ctx, request)
}

// --- Effects ---

func (c *Controller) approve(ctx context.Context, request *certificatesv1.CertificateSigningRequest) error {
	approved := request.DeepCopy()
	approved.Status.Conditions = append(approved.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type:           certificatesv1.CertificateApproved,
		Status:         corev1.ConditionTrue,
		Reason:         "NodeServing",
		Message:        "All names and addresses belong to the requesting node.",
		LastUpdateTime: metav1.Now(),
	})
	_, err := c.client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, approved.Name, approved, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("approve %s: %w", approved.Name, err)
	}
	return nil
}
