package volumes

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	certificatesinformers "k8s.io/client-go/informers/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	// issueTimeout is how long the first Mount waits for a signer before it says so. The volume is tried again when it answers.
	issueTimeout = 5 * time.Second
	// certificateJitter spreads renewals, so that pods which started together do not ask together for ever.
	certificateJitter = 5 * time.Minute
	// certificateRetry is when a renewal is looked at again, should the signer's answer never come.
	certificateRetry = time.Minute
)

// certificates obtains certificates for pods: it makes a key, asks the signer that the pod names by a PodCertificateRequest
// (KEP-4317), and renews when the signer says so. Keys live in memory and in the pod's volume and nowhere else; a restarted agent
// asks anew, as kubelet does.
//
//	(nothing) ──ask──► pending ──Issued──► current ──beginRefreshAt──► current + pending ──Issued──► current …
//	                      └──Denied, Failed──► refused, for good: the pod has to be made again
type certificates struct {
	ctx      context.Context // ends the watch
	client   kubernetes.Interface
	nodeName string
	log      *slog.Logger
	tell     func(types.UID) // called when a request of the pod changed

	mu       sync.Mutex
	known    map[certificateKey]*certificate
	informer cache.SharedIndexInformer // of this node's requests; nil before the first use
	changed  chan struct{}             // closed and replaced at every change
	nodeUID  types.UID
}

type certificateKey struct {
	podUID types.UID
	volume string
	source int
}

// certificate is what is known of one projection. Whoever works on it holds mu.
type certificate struct {
	mu      sync.Mutex
	current *credentials
	pending *certificateRequest
	refused error
	// lookAt is when the projection needs work again; zero if only a change of the request can matter.
	lookAt time.Time
}

// credentials are a private key and the chain for it, leaf first, both PEM.
type credentials struct {
	key, chain []byte
	notAfter   time.Time
}

type certificateRequest struct {
	name, resourceVersion string
	key                   []byte
}

// get returns a projection's credentials. Without any yet it waits for the signer until ctx is done or 5 s have passed.
func (c *certificates) get(ctx context.Context, pod *corev1.Pod, key certificateKey, projection *corev1.PodCertificateProjection) (*credentials, error) {
	informer, known, err := c.entry(ctx, key)
	if err != nil {
		return nil, err
	}
	known.mu.Lock()
	defer known.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	for {
		changed := c.change()
		if err := c.step(ctx, informer, pod, known, projection); err != nil {
			if known.current == nil || !time.Now().Before(known.current.notAfter) {
				return nil, err
			}
			c.log.Warn("cannot renew pod certificate", "pod", pod.Namespace+"/"+pod.Name, "signer", projection.SignerName, "err", err)
			known.lookAt = time.Now().Add(certificateRetry)
		}
		if known.current != nil {
			return known.current, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("signer %q has not issued podcertificaterequest %q yet", projection.SignerName, known.pending.name)
		}
	}
}

// step moves a projection on as far as it goes without waiting.
func (c *certificates) step(ctx context.Context, informer cache.SharedIndexInformer, pod *corev1.Pod, known *certificate, projection *corev1.PodCertificateProjection) error {
	if known.refused != nil {
		return known.refused
	}
	if known.pending != nil {
		item, ok, err := informer.GetStore().GetByKey(pod.Namespace + "/" + known.pending.name)
		switch {
		case err != nil:
			return err
		case ok:
			known.settle(item.(*certificatesv1.PodCertificateRequest), time.Now())
		case isPast(informer.GetStore().LastStoreSyncResourceVersion(), known.pending.resourceVersion):
			known.pending = nil // somebody deleted it
		}
	}
	due := known.current == nil || !time.Now().Before(known.lookAt)
	if known.refused == nil && known.pending == nil && due {
		request, err := c.request(ctx, pod, projection)
		if err != nil {
			return fmt.Errorf("request certificate from signer %q: %w", projection.SignerName, err)
		}
		known.pending = request
		known.lookAt = time.Now().Add(certificateRetry)
	}
	return known.refused
}

// settle takes over the signer's answer to the pending request, if there is one.
func (known *certificate) settle(request *certificatesv1.PodCertificateRequest, now time.Time) {
	for _, condition := range request.Status.Conditions {
		switch condition.Type {
		case certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed:
			known.refused = fmt.Errorf("podcertificaterequest %q: %s: %s: %s", request.Name, condition.Type, condition.Reason, condition.Message)
			known.pending = nil
		case certificatesv1.PodCertificateRequestConditionTypeIssued:
			issued := &credentials{key: known.pending.key}
			for _, der := range certificatesIn(request.Status.CertificateChain) {
				issued.chain = append(issued.chain, encodeCertificate(der)...)
			}
			known.lookAt = now.Add(time.Hour)
			if at := request.Status.BeginRefreshAt; at != nil {
				known.lookAt = at.Add(mathrand.N(certificateJitter))
			}
			if at := request.Status.NotAfter; at != nil {
				issued.notAfter = at.Time
			}
			known.current, known.pending = issued, nil
		}
	}
	if known.pending != nil {
		known.lookAt = now.Add(certificateRetry)
	}
}

// request makes a key and asks for a certificate for it.
func (c *certificates) request(ctx context.Context, pod *corev1.Pod, projection *corev1.PodCertificateProjection) (*certificateRequest, error) {
	account, err := c.client.CoreV1().ServiceAccounts(pod.Namespace).Get(ctx, pod.Spec.ServiceAccountName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	nodeUID, err := c.node(ctx)
	if err != nil {
		return nil, err
	}
	key, proof, err := newKey(projection.KeyType)
	if err != nil {
		return nil, err
	}
	created, err := c.client.CertificatesV1().PodCertificateRequests(pod.Namespace).Create(ctx, &certificatesv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName:    "req-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
		},
		Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: projection.SignerName,
			PodName:    pod.Name, PodUID: pod.UID,
			ServiceAccountName: account.Name, ServiceAccountUID: account.UID,
			NodeName: types.NodeName(c.nodeName), NodeUID: nodeUID,
			MaxExpirationSeconds:      projection.MaxExpirationSeconds,
			StubPKCS10Request:         proof,
			UnverifiedUserAnnotations: projection.UserAnnotations,
		},
	}, metav1.CreateOptions{})
	if err != nil {
		c.mu.Lock()
		c.nodeUID = "" // perhaps the node's object is another one now
		c.mu.Unlock()
		return nil, err
	}
	return &certificateRequest{name: created.Name, resourceVersion: created.ResourceVersion, key: key}, nil
}

// node returns the UID of this node's object.
func (c *certificates) node(ctx context.Context) (types.UID, error) {
	c.mu.Lock()
	uid := c.nodeUID
	c.mu.Unlock()
	if uid != "" {
		return uid, nil
	}
	node, err := c.client.CoreV1().Nodes().Get(ctx, c.nodeName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodeUID = node.UID
	return node.UID, nil
}

// newKey makes a private key of a type of the API (PEM of PKCS #8), and a PKCS #10 request that proves its possession.
func newKey(keyType string) (pemKey, proof []byte, err error) {
	var key crypto.PrivateKey
	switch keyType {
	case "RSA3072":
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	case "RSA4096":
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	case "ECDSAP256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECDSAP384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ECDSAP521":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ED25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("podCertificate.keyType: %q is not known", keyType)
	}
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	proof, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), proof, err
}

// entry returns the state of a projection and the informer of requests, which the first call starts; ctx bounds the wait for it.
func (c *certificates) entry(ctx context.Context, key certificateKey) (cache.SharedIndexInformer, *certificate, error) {
	c.mu.Lock()
	if c.informer == nil {
		c.startInformer()
	}
	informer := c.informer
	known := c.known[key]
	if known == nil {
		known = &certificate{}
		c.known[key] = known
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil, nil, fmt.Errorf("cannot read podcertificaterequests: %w", context.Cause(ctx))
	}
	return informer, known, nil
}

// startInformer begins to watch this node's requests; the Node authorizer allows no others.
func (c *certificates) startInformer() {
	own := func(options *metav1.ListOptions) {
		options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", c.nodeName).String()
	}
	c.informer = certificatesinformers.NewFilteredPodCertificateRequestInformer(c.client, metav1.NamespaceAll, 0, cache.Indexers{}, own)
	notify := func(object any) {
		if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		c.mu.Lock()
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if request, ok := object.(*certificatesv1.PodCertificateRequest); ok {
			c.tell(request.Spec.PodUID)
		}
	}
	// The error is that of an informer which has stopped; this one has not begun.
	_, _ = c.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: notify, DeleteFunc: notify, UpdateFunc: func(_, after any) { notify(after) },
	})
	go c.informer.RunWithContext(c.ctx)
}

// change returns a channel that is closed when any request changes after this call.
func (c *certificates) change() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// nextRenewal is when the first of a pod's certificates needs work; ok is false if it has none.
func (c *certificates) nextRenewal(podUID types.UID) (at time.Time, ok bool) {
	for _, known := range c.of(podUID) {
		known.mu.Lock()
		if known.refused == nil && !known.lookAt.IsZero() && (!ok || known.lookAt.Before(at)) {
			at, ok = known.lookAt, true
		}
		known.mu.Unlock()
	}
	return at, ok
}

func (c *certificates) of(podUID types.UID) []*certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*certificate
	for key, known := range c.known {
		if key.podUID == podUID {
			list = append(list, known)
		}
	}
	return list
}

// forget drops a pod's keys and certificates.
func (c *certificates) forget(podUID types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.known {
		if key.podUID == podUID {
			delete(c.known, key)
		}
	}
}

// isPast reports whether a store has seen the given version of the cluster's state.
func isPast(seen, version string) bool {
	order, err := resourceversion.CompareResourceVersion(seen, version)
	return err == nil && order >= 0
}
