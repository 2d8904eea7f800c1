package volumes

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	certificatesinformers "k8s.io/client-go/informers/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// trustBundles is this node's view of ClusterTrustBundles: one watch for all of them, which begins with the first pod that
// projects one (kubernetes/pkg/kubelet/clustertrustbundle). Most nodes never need it.
type trustBundles struct {
	client kubernetes.Interface
	tell   func(types.UID) // called for every user when a bundle changed

	mu       sync.Mutex
	users    map[types.UID]bool
	informer cache.SharedIndexInformer // nil before the first use
}

// acquire notes that a pod uses bundles, if it does, and begins to watch them; ctx ends the watch.
func (t *trustBundles) acquire(ctx context.Context, pod *corev1.Pod) {
	if !usesTrustBundles(pod) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users[pod.UID] = true
	if t.informer != nil {
		return
	}
	t.informer = certificatesinformers.NewClusterTrustBundleInformer(t.client, 0, cache.Indexers{})
	changed := func(any) { t.changed() }
	// The error is that of an informer which has stopped; this one has not begun.
	_, _ = t.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, DeleteFunc: changed, UpdateFunc: func(_, after any) { changed(after) },
	})
	go t.informer.RunWithContext(ctx)
}

// release is the opposite of acquire.
func (t *trustBundles) release(podUID types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.users, podUID)
}

func (t *trustBundles) changed() {
	t.mu.Lock()
	users := slices.Collect(maps.Keys(t.users))
	t.mu.Unlock()
	for _, uid := range users {
		t.tell(uid)
	}
}

// anchors returns the certificates (PEM) that a projection of an acquired pod selects: each once, in an order that does not
// change. Nothing selected is an error unless the projection is optional.
func (t *trustBundles) anchors(ctx context.Context, projection *corev1.ClusterTrustBundleProjection) ([]byte, error) {
	bundles, err := t.list(ctx)
	if err != nil {
		return nil, err
	}
	selected, err := selectBundles(bundles, projection)
	if err != nil {
		return nil, err
	}
	certificates := map[string]bool{}
	for _, bundle := range selected {
		for _, der := range certificatesIn(bundle.Spec.TrustBundle) {
			certificates[der] = true
		}
	}
	var anchors []byte
	for _, der := range slices.Sorted(maps.Keys(certificates)) {
		anchors = append(anchors, encodeCertificate(der)...)
	}
	return anchors, nil
}

// list returns all bundles, when the watch has had its first answer.
func (t *trustBundles) list(ctx context.Context) ([]*certificatesv1.ClusterTrustBundle, error) {
	t.mu.Lock()
	informer := t.informer
	t.mu.Unlock()
	if informer == nil {
		return nil, errors.New("no pod of this node uses clustertrustbundles")
	}
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil, errors.New("cannot read clustertrustbundles: the API server has not answered yet")
	}
	var bundles []*certificatesv1.ClusterTrustBundle
	for _, item := range informer.GetStore().List() {
		bundles = append(bundles, item.(*certificatesv1.ClusterTrustBundle))
	}
	return bundles, nil
}

// selectBundles returns the bundles that a projection means: one by name, or those of a signer that match a selector, of which
// none matches nothing and an empty one everything.
func selectBundles(all []*certificatesv1.ClusterTrustBundle, projection *corev1.ClusterTrustBundleProjection) ([]*certificatesv1.ClusterTrustBundle, error) {
	var selected []*certificatesv1.ClusterTrustBundle
	var missing error
	switch {
	case projection.Name != nil:
		for _, bundle := range all {
			if bundle.Name == *projection.Name {
				selected = append(selected, bundle)
			}
		}
		missing = apierrors.NewNotFound(certificatesv1.Resource("clustertrustbundles"), *projection.Name)
	case projection.SignerName != nil:
		selector, err := metav1.LabelSelectorAsSelector(projection.LabelSelector)
		if err != nil {
			return nil, fmt.Errorf("clusterTrustBundle.labelSelector: %w", err)
		}
		for _, bundle := range all {
			if bundle.Spec.SignerName == *projection.SignerName && selector.Matches(labels.Set(bundle.Labels)) {
				selected = append(selected, bundle)
			}
		}
		missing = fmt.Errorf("no clustertrustbundle of signer %q matches %s", *projection.SignerName, metav1.FormatLabelSelector(projection.LabelSelector))
	default:
		return nil, errors.New("clusterTrustBundle: needs name or signerName")
	}
	if len(selected) == 0 && !isTrue(projection.Optional) {
		return nil, missing
	}
	return selected, nil
}

func usesTrustBundles(pod *corev1.Pod) bool {
	return projects(pod, func(source *corev1.VolumeProjection) bool { return source.ClusterTrustBundle != nil })
}

// certificatesIn returns the certificates (DER) in a PEM text, without what stands between them.
func certificatesIn(text string) []string {
	var certificates []string
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return certificates
		}
		certificates = append(certificates, string(block.Bytes))
	}
}

func encodeCertificate(der string) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(der)})
}
