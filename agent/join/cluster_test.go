package join

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

const testToken = "abcdef.0123456789abcdef"

// cluster is an API server of one resource, certificate requests, that
// approves and signs with a CA of its own.
type cluster struct {
	*httptest.Server
	ca      *x509.Certificate
	caKey   *ecdsa.PrivateKey
	caFile  string
	publish bool // show the CA in kube-public/cluster-info
	deny    bool
	expires time.Time

	mu       sync.Mutex
	requests map[string]*certificatesv1.CertificateSigningRequest
	askers   []string // "token" or the common name of the client certificate
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{requests: map[string]*certificatesv1.CertificateSigningRequest{}, expires: time.Now().Add(time.Hour)}
	c.caKey, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: t.Name()}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.caKey.Public(), c.caKey)
	if err != nil {
		t.Fatal(err)
	}
	c.ca, _ = x509.ParseCertificate(der)
	c.caFile = filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(c.caFile, c.caPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	own := c.sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, key.Public())
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	pool := x509.NewCertPool()
	pool.AddCert(c.ca)
	c.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{own}, PrivateKey: key}},
		ClientAuth:   tls.VerifyClientCertIfGiven, ClientCAs: pool,
	}
	c.Config.ErrorLog = nil
	c.StartTLS()
	t.Cleanup(c.Close)
	return c
}

func (c *cluster) caPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.Raw})
}

func (c *cluster) caHash() string {
	sum := sha256.Sum256(c.ca.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (c *cluster) sign(template *x509.Certificate, key any) []byte {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), c.expires
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, c.ca, key, c.caKey)
	if err != nil {
		panic(err)
	}
	return der
}

func (c *cluster) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.URL.Path == "/api/v1/namespaces/kube-public/configmaps/cluster-info" && c.publish {
		c.reply(w, http.StatusOK, c.clusterInfo())
		return
	}
	switch {
	case r.Header.Get("Authorization") == "Bearer "+testToken:
		c.askers = append(c.askers, "token")
	case len(r.TLS.PeerCertificates) > 0:
		c.askers = append(c.askers, r.TLS.PeerCertificates[0].Subject.CommonName)
	default:
		c.reply(w, http.StatusUnauthorized, &metav1.Status{Status: "Failure", Reason: metav1.StatusReasonUnauthorized, Code: 401, Message: "Unauthorized"})
		return
	}
	if r.Method == http.MethodPost {
		c.create(w, r)
		return
	}
	list := &certificatesv1.CertificateSigningRequestList{}
	for name, request := range c.requests {
		if r.URL.Query().Get("fieldSelector") == "metadata.name="+name {
			list.Items = append(list.Items, *request)
		}
	}
	c.reply(w, http.StatusOK, list)
}

func (c *cluster) create(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	request := &certificatesv1.CertificateSigningRequest{}
	if err := runtime.DecodeInto(scheme.Codecs.UniversalDeserializer(), body, request); err != nil {
		panic(err)
	}
	request.Name = request.GenerateName + hex.EncodeToString([]byte{byte(len(c.requests))})
	if c.deny {
		request.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Reason: "Policy", Message: "not today"}}
	} else {
		block, _ := pem.Decode(request.Spec.Request)
		parsed, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			panic(err)
		}
		der := c.sign(&x509.Certificate{Subject: parsed.Subject, DNSNames: parsed.DNSNames, IPAddresses: parsed.IPAddresses}, parsed.PublicKey)
		request.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	c.requests[request.Name] = request
	c.reply(w, http.StatusCreated, request)
}

func (c *cluster) reply(w http.ResponseWriter, code int, object runtime.Object) {
	if kinds, _, err := scheme.Scheme.ObjectKinds(object); err == nil {
		object.GetObjectKind().SetGroupVersionKind(kinds[0])
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object)
}

func (c *cluster) clusterInfo() *corev1.ConfigMap {
	config := map[string]any{"apiVersion": "v1", "kind": "Config", "clusters": []any{
		map[string]any{"name": "", "cluster": map[string]any{"server": "https://x", "certificate-authority-data": c.caPEM()}},
	}}
	data, _ := json.Marshal(config)
	return &corev1.ConfigMap{Data: map[string]string{"kubeconfig": string(data)}}
}

func (c *cluster) asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.askers...)
}
