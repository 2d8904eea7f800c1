package join

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/keyutil"
)

const (
	// issueTimeout is how long one request may stay unanswered before a new
	// one is made; the server forgets unanswered requests after an hour.
	issueTimeout = 15 * time.Minute
	// tokenPatience is how long a refused token is tried again: a server that
	// has just started may not have read its tokens yet.
	tokenPatience = 20 * time.Second
	// progressInterval is how often a wait without change is logged.
	progressInterval = 10 * time.Second
)

// keeper holds one certificate of this node, on disk and in memory, and
// replaces it before it expires. obtain and run are not called concurrently;
// current may be read at any time.
type keeper struct {
	path     string // certificate and key, PEM
	signer   string
	usages   []certificatesv1.KeyUsage
	subject  pkix.Name
	dnsNames []string
	ips      []net.IP

	renew     kubernetes.Interface // the node's own client; set before run
	bootstrap kubernetes.Interface // nil without a token
	log       *slog.Logger

	current atomic.Pointer[tls.Certificate]
}

// load takes the certificate on disk if it is still the one we would ask for.
func (k *keeper) load(now time.Time) error {
	cert, err := tls.LoadX509KeyPair(k.path, k.path)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("none was issued yet")
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", k.path, err)
	}
	if err := k.suits(cert.Leaf, now); err != nil {
		return fmt.Errorf("certificate in %s: %w", k.path, err)
	}
	k.current.Store(&cert)
	return nil
}

// suits reports why a certificate cannot be used, nil if it can.
func (k *keeper) suits(leaf *x509.Certificate, now time.Time) error {
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("expired at %s", leaf.NotAfter.Format(time.RFC3339))
	case leaf.Subject.CommonName != k.subject.CommonName:
		return fmt.Errorf("issued to %s, not to %s", leaf.Subject.CommonName, k.subject.CommonName)
	}
	for _, name := range k.dnsNames {
		if !slices.Contains(leaf.DNSNames, name) {
			return fmt.Errorf("does not cover the name %s", name)
		}
	}
	for _, ip := range k.ips {
		if !slices.ContainsFunc(leaf.IPAddresses, ip.Equal) {
			return fmt.Errorf("does not cover the address %s", ip)
		}
	}
	return nil
}

// run renews the certificate until ctx is done. A keeper without a
// certificate obtains one at once.
func (k *keeper) run(ctx context.Context) {
	retry := time.Second
	for ctx.Err() == nil {
		if cert := k.current.Load(); cert != nil {
			at := renewAt(cert.Leaf.NotBefore, cert.Leaf.NotAfter, randomFraction())
			if !sleep(ctx, time.Until(at)) {
				return
			}
		}
		if err := k.obtain(ctx, k.client(time.Now())); err != nil && ctx.Err() == nil {
			k.log.Error("no new certificate, trying again", "signer", k.signer, "in", retry, "error", err)
			sleep(ctx, retry)
			retry = min(2*retry, time.Minute)
			continue
		}
		retry = time.Second
	}
}

// client is whoever can still ask: the node itself, or the bootstrap token
// once the node's certificate has expired while the server was away.
func (k *keeper) client(now time.Time) kubernetes.Interface {
	cert := k.current.Load()
	if k.bootstrap != nil && (cert == nil || now.After(cert.Leaf.NotAfter)) {
		return k.bootstrap
	}
	return k.renew
}

// renewAt is the moment to ask for a successor: between 70 and 90 % of the
// lifetime, so that the nodes of a cluster do not ask all at once.
func renewAt(notBefore, notAfter time.Time, fraction float64) time.Time {
	lifetime := notAfter.Sub(notBefore)
	return notBefore.Add(time.Duration(float64(lifetime) * (7 + 2*fraction) / 10))
}

// obtain asks client for a certificate and stores it. It retries what may
// heal by itself, and returns an error that says what to do about the rest.
func (k *keeper) obtain(ctx context.Context, client kubernetes.Interface) error {
	start := time.Now()
	lastLog := time.Time{}
	var last error
	delay := wait.Backoff{Duration: 200 * time.Millisecond, Factor: 1.6, Jitter: 0.2, Steps: 20, Cap: 5 * time.Second}
	for {
		err := k.attempt(ctx, client)
		if err == nil {
			k.log.Info("certificate issued", "signer", k.signer, "notAfter", k.current.Load().Leaf.NotAfter)
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("given up after %s: %w", time.Since(start).Round(time.Second), cmp.Or(last, err))
		}
		last = err
		if final := explain(err, time.Since(start)); final != nil {
			return final
		}
		if time.Since(lastLog) >= progressInterval {
			k.log.Info("waiting for the API server", "waited", time.Since(start).Round(time.Second), "error", err)
			lastLog = time.Now()
		}
		sleep(ctx, delay.Step())
	}
}

// explain turns an error that no retry heals into advice; nil means retry.
func explain(err error, waited time.Duration) error {
	var unknownCA x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var denied *deniedError
	switch {
	case errors.As(err, &unknownCA):
		return fmt.Errorf("the server's certificate is not signed by the CA of this cluster; another cluster, or an outdated CA file: %w", err)
	case errors.As(err, &hostname):
		return fmt.Errorf("the server's certificate does not cover the address used to reach it: %w", err)
	case errors.As(err, &invalid):
		return fmt.Errorf("the server's certificate is not valid (is the clock right?): %w", err)
	case errors.As(err, &denied):
		return err
	case apierrors.IsUnauthorized(err) && waited >= tokenPatience:
		return fmt.Errorf("the server refuses this node's credentials: the bootstrap token has expired or is unknown; make a new one on the server: %w", err)
	case apierrors.IsForbidden(err) && waited >= tokenPatience:
		return fmt.Errorf("these credentials may not ask for node certificates: %w", err)
	}
	return nil
}

// deniedError is an answer to a request that is not a certificate.
type deniedError struct{ request, outcome, reason, message string }

func (e *deniedError) Error() string {
	return fmt.Sprintf("certificate request %s: %s (%s: %s)", e.request, e.outcome, e.reason, e.message)
}

// attempt makes a key, requests a certificate for it and waits for the answer.
func (k *keeper) attempt(ctx context.Context, client kubernetes.Interface) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: k.subject, DNSNames: k.dnsNames, IPAddresses: k.ips,
	}, key)
	if err != nil {
		return fmt.Errorf("create certificate request: %w", err)
	}
	request := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	// The create call itself, not client-go's wrapper of it, which turns TLS
	// errors into text.
	created, err := client.CertificatesV1().CertificateSigningRequests().Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "node-csr-"},
		Spec:       certificatesv1.CertificateSigningRequestSpec{Request: request, SignerName: k.signer, Usages: k.usages},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create certificate request: %w", err)
	}
	name := created.Name
	issued, err := k.await(ctx, client, name)
	if err != nil {
		return err
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	return k.store(issued, keyPEM)
}

// await returns the certificate issued for the named request.
func (k *keeper) await(ctx context.Context, client kubernetes.Interface, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	requests := client.CertificatesV1().CertificateSigningRequests()
	options := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()}
	for {
		list, err := requests.List(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("read certificate request %s: %w", name, err)
		}
		if len(list.Items) == 0 {
			return nil, fmt.Errorf("certificate request %s was deleted before it was answered", name)
		}
		if cert, err := answer(&list.Items[0]); cert != nil || err != nil {
			return cert, err
		}
		options.ResourceVersion = list.ResourceVersion
		w, err := requests.Watch(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("watch certificate request %s: %w", name, err)
		}
		cert, err := k.follow(ctx, w, name)
		if cert != nil || err != nil {
			return cert, err
		}
		options.ResourceVersion = ""
	}
}

// follow returns the answer that w brings; nothing if the watch ends without.
func (k *keeper) follow(ctx context.Context, w watch.Interface, name string) ([]byte, error) {
	defer w.Stop()
	progress := time.NewTicker(progressInterval)
	defer progress.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("certificate request %s was not approved and signed in time: %w", name, ctx.Err())
		case <-progress.C:
			k.log.Info("waiting for the certificate request to be approved and signed", "csr", name, "signer", k.signer)
		case event, ok := <-w.ResultChan():
			if !ok || event.Type == watch.Error {
				return nil, nil
			}
			request, ok := event.Object.(*certificatesv1.CertificateSigningRequest)
			if !ok || event.Type == watch.Deleted {
				return nil, nil
			}
			if cert, err := answer(request); cert != nil || err != nil {
				return cert, err
			}
		}
	}
}

// answer is the certificate of an approved and signed request, an error for a
// refused one, nothing while it is open.
func answer(r *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	for _, c := range r.Status.Conditions {
		if c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed {
			return nil, &deniedError{request: r.Name, outcome: string(c.Type), reason: c.Reason, message: c.Message}
		}
	}
	if len(r.Status.Certificate) == 0 {
		return nil, nil
	}
	return r.Status.Certificate, nil
}

// store writes certificate and key to disk and then uses them.
func (k *keeper) store(certPEM, keyPEM []byte) error {
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("the issued certificate does not fit its key: %w", err)
	}
	if err := k.suits(cert.Leaf, time.Now()); err != nil {
		return fmt.Errorf("the issued certificate: %w", err)
	}
	if err := writeFile(k.path, slices.Concat(certPEM, keyPEM)); err != nil {
		return err
	}
	k.current.Store(&cert)
	return nil
}

// sleep reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// randomFraction is in [0, 1).
func randomFraction() float64 {
	n, err := rand.Int(rand.Reader, big.NewInt(1<<20))
	if err != nil {
		return 0.5
	}
	return float64(n.Int64()) / (1 << 20)
}
