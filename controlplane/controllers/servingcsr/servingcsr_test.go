package servingcsr

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

type edit func(*certificatesv1.CertificateSigningRequest, *x509.CertificateRequest)

// request is a good request of node n1 unless edited.
func request(t *testing.T, edits ...edit) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	csr := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "csr"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: certificatesv1.KubeletServingSignerName,
			Username:   "system:node:n1",
			Groups:     []string{"system:nodes", "system:authenticated"},
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
		},
	}
	template := &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "system:node:n1", Organization: []string{"system:nodes"}},
		DNSNames:    []string{"n1", "n1.example.com"},
		IPAddresses: []net.IP{net.ParseIP("172.30.0.1"), net.ParseIP("fd00::1")},
	}
	for _, e := range edits {
		e(csr, template)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	if csr.Spec.Request == nil {
		csr.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	return csr
}

func n1() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: "172.30.0.1"},
			{Type: corev1.NodeInternalIP, Address: "fd00::1"},
			{Type: corev1.NodeInternalDNS, Address: "n1.example.com"},
			{Type: corev1.NodeHostName, Address: "172.30.0.77"},
		}},
	}
}

func TestDecide(t *testing.T) {
	cases := []struct {
		name   string
		edit   edit
		reason string // part of it; empty = approved
	}{
		{"a node's own names and addresses are approved",
			func(*certificatesv1.CertificateSigningRequest, *x509.CertificateRequest) {}, ""},
		{"one address is enough",
			func(_ *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				r.DNSNames, r.IPAddresses = nil, r.IPAddresses[:1]
			}, ""},
		{"a request for nothing is left alone",
			func(_ *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				r.DNSNames, r.IPAddresses = nil, nil
			}, "no name"},
		{"another node's address is left alone",
			func(_ *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				r.IPAddresses = append(r.IPAddresses, net.ParseIP("172.30.0.2"))
			}, "172.30.0.2"},
		{"an address that is reported as a host name is none",
			func(_ *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				r.IPAddresses = []net.IP{net.ParseIP("172.30.0.77")}
			}, "172.30.0.77"},
		{"another name is left alone",
			func(_ *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				r.DNSNames = []string{"kubernetes.default"}
			}, "kubernetes.default"},
		{"a wildcard is left alone",
			func(_ *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				r.DNSNames = []string{"*.example.com"}
			}, "*.example.com"},
		{"another node's certificate is left alone",
			func(c *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				r.Subject.CommonName = "system:node:n2"
			}, "common name"},
		{"a request on behalf of a node by somebody else is left alone",
			func(c *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				c.Spec.Username = "admin"
			}, "no node"},
		{"a user outside of the nodes' group is left alone",
			func(c *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				c.Spec.Groups = []string{"system:masters"}
			}, "system:nodes"},
		{"another organization is left alone",
			func(_ *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				r.Subject.Organization = append(r.Subject.Organization, "system:masters")
			}, "organization"},
		{"a client certificate is left alone",
			func(c *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				c.Spec.Usages = append(c.Spec.Usages, certificatesv1.UsageClientAuth)
			}, "client auth"},
		{"a certificate that is not for serving is left alone",
			func(c *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				c.Spec.Usages = c.Spec.Usages[:1]
			}, "server auth"},
		{"a URI is left alone",
			func(_ *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				r.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}}
			}, "URIs"},
		{"what cannot be parsed is left alone",
			func(c *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest) {
				c.Spec.Request = []byte("x")
			}, "PEM"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := decide(request(t, c.edit), n1())
			if (err == nil) != (c.reason == "") || err != nil && !strings.Contains(err.Error(), c.reason) {
				t.Errorf("got %v, want %q", err, c.reason)
			}
		})
	}
}

func TestRequestIsApprovedOnceTheNodeReportsItsAddresses(t *testing.T) {
	csr := request(t)
	synctest.Test(t, func(t *testing.T) {
		cluster := testcluster.New(t)
		c, err := New(cluster.Env("serving-certificate-controller"))
		if err != nil {
			t.Fatal(err)
		}
		cluster.Run(c)
		requests := cluster.Client.CertificatesV1().CertificateSigningRequests()
		if _, err := requests.Create(t.Context(), csr, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		cluster.Pass(time.Second)
		get := func() *certificatesv1.CertificateSigningRequest {
			return testcluster.Must[*certificatesv1.CertificateSigningRequest](t)(requests.Get(t.Context(), "csr", metav1.GetOptions{}))
		}
		if !isPending(get()) {
			t.Fatal("approved without a node")
		}
		if _, err := cluster.Client.CoreV1().Nodes().Create(t.Context(), n1(), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		cluster.Pass(time.Second)
		if conditions := get().Status.Conditions; len(conditions) != 1 || conditions[0].Type != certificatesv1.CertificateApproved {
			t.Errorf("conditions: %+v", conditions)
		}
	})
}
