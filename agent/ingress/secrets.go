package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// settleTime is how long a Secret may stay unread before it counts as
// missing. Reading needs a Role that a controller makes for each Secret that
// an Ingress names, so the first attempts may be refused.
const settleTime = 10 * time.Second

// secrets watches the TLS Secrets that Ingresses name, each by its name,
// which is all that a node may do.
type secrets struct {
	client  kubernetes.Interface
	changed func()

	mu   sync.Mutex
	byID map[types.NamespacedName]*secretWatch
}

type secretWatch struct {
	cancel context.CancelFunc
	since  time.Time
	synced cache.InformerSynced
	// data is what cert was parsed from.
	certPEM, keyPEM []byte
	exists          bool
	cert            *tls.Certificate
}

func newSecrets(client kubernetes.Interface, changed func()) *secrets {
	return &secrets{client: client, changed: changed, byID: map[types.NamespacedName]*secretWatch{}}
}

// watch makes names the ones that are watched.
func (s *secrets) watch(ctx context.Context, names []types.NamespacedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[types.NamespacedName]bool{}
	for _, name := range names {
		wanted[name] = true
		if s.byID[name] == nil {
			s.byID[name] = s.start(ctx, name)
		}
	}
	for name, w := range s.byID {
		if !wanted[name] {
			w.cancel()
			delete(s.byID, name)
		}
	}
}

// stop ends all watches.
func (s *secrets) stop() { s.watch(context.Background(), nil) }

func (s *secrets) start(ctx context.Context, name types.NamespacedName) *secretWatch {
	ctx, cancel := context.WithCancel(ctx)
	factory := informers.NewSharedInformerFactoryWithOptions(s.client, 0,
		informers.WithNamespace(name.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name.Name).String()
		}))
	informer := factory.Core().V1().Secrets().Informer()
	w := &secretWatch{cancel: cancel, since: time.Now(), synced: informer.HasSynced}
	take := func(object any) {
		if secret, ok := object.(*corev1.Secret); ok {
			s.take(w, secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey], true)
		}
	}
	// The selector leaves one Secret; fake API servers do not know it.
	isNamed := func(object any) bool {
		id, err := cache.DeletionHandlingObjectToName(object)
		return err == nil && id.Name == name.Name
	}
	// An informer that has not started takes every handler.
	_, _ = informer.AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: isNamed,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    take,
			UpdateFunc: func(_, object any) { take(object) },
			DeleteFunc: func(any) { s.take(w, nil, nil, false) },
		},
	})
	factory.Start(ctx.Done())
	go func() {
		if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			s.changed()
		}
	}()
	return w
}

func (s *secrets) take(w *secretWatch, certPEM, keyPEM []byte, exists bool) {
	s.mu.Lock()
	defer s.changed()
	defer s.mu.Unlock()
	w.exists = exists
	if bytes.Equal(certPEM, w.certPEM) && bytes.Equal(keyPEM, w.keyPEM) {
		return
	}
	w.certPEM, w.keyPEM, w.cert = certPEM, keyPEM, nil
	if pair, err := tls.X509KeyPair(certPEM, keyPEM); err == nil {
		w.cert = &pair
	}
}

// state implements Inputs.Secret.
func (s *secrets) state(name types.NamespacedName) SecretState {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.byID[name]
	switch {
	case w == nil:
		return SecretUnknown
	case w.cert != nil:
		return SecretValid
	case w.exists:
		return SecretInvalid
	case w.synced() || time.Since(w.since) >= settleTime:
		return SecretMissing
	default:
		return SecretUnknown
	}
}

// settles returns how long until an unread Secret counts as missing; 0 if
// there is none.
func (s *secrets) settles() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var longest time.Duration
	for _, w := range s.byID {
		if left := settleTime - time.Since(w.since); left > 0 && !w.synced() {
			longest = max(longest, left)
		}
	}
	return longest
}

// certificate returns the certificate of a Secret by namespace/name, or nil.
func (s *secrets) certificate(name string) *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, w := range s.byID {
		if id.String() == name {
			return w.cert
		}
	}
	return nil
}
