package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// open opens a PKI in dir at the time now points to.
func open(t *testing.T, dir string, now *time.Time) *PKI {
	t.Helper()
	p, err := Open(Config{
		Dir:              dir,
		ClusterName:      "test",
		AdvertiseAddress: netip.MustParseAddr("192.0.2.1"),
		ServiceAddresses: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")},
		ClusterDomain:    "cluster.example",
		ExtraSANs:        []string{"api.example.org", "192.0.2.9"},
		Now:              func() time.Time { return *now },
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func start() *time.Time {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return &now
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func certificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	cert, err := parseCert(read(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestEachCertificateIsSignedByItsAuthorityForItsUse(t *testing.T) {
	p := open(t, t.TempDir(), start())
	tests := []struct {
		name, cert, ca, user string
		usage                x509.ExtKeyUsage
	}{
		{"the API server serves under the cluster CA", APIServerCert, ClusterCA, "kube-apiserver", x509.ExtKeyUsageServerAuth},
		{"nodes know the API server under the cluster CA", KubeletClientCert, ClusterCA, KubeletClientUser, x509.ExtKeyUsageClientAuth},
		{"aggregated servers know it under the front-proxy CA", FrontProxyClientCert, FrontProxyCA, FrontProxyUser, x509.ExtKeyUsageClientAuth},
		{"etcd serves under the etcd CA", EtcdServerCert, EtcdCA, "etcd", x509.ExtKeyUsageServerAuth},
		{"etcd speaks to peers under the etcd CA", EtcdServerCert, EtcdCA, "etcd", x509.ExtKeyUsageClientAuth},
		{"etcd knows the API server under the etcd CA", EtcdClientCert, EtcdCA, "kube-apiserver-etcd-client", x509.ExtKeyUsageClientAuth},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AddCert(certificate(t, p.Path(tt.ca)))
			cert := certificate(t, p.Path(tt.cert))
			_, err := cert.Verify(x509.VerifyOptions{
				Roots:       roots,
				CurrentTime: *start(),
				KeyUsages:   []x509.ExtKeyUsage{tt.usage},
			})
			if err != nil {
				t.Error(err)
			}
			if cert.Subject.CommonName != tt.user {
				t.Errorf("user is %q, want %q", cert.Subject.CommonName, tt.user)
			}
		})
	}
}

func TestTheServingCertificateHoldsEveryNameOfTheServer(t *testing.T) {
	p := open(t, t.TempDir(), start())
	cert := certificate(t, p.Path(APIServerCert))
	for _, name := range []string{
		"localhost", "127.0.0.1", "::1", "192.0.2.1", "10.96.0.1", "fd00::1",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.example", "api.example.org", "192.0.2.9",
	} {
		if err := cert.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if err := cert.VerifyHostname("192.0.2.2"); err == nil {
		t.Error("the certificate is valid for an address that is not the server's")
	}
}

func TestOnlyTheOwnerReadsKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	open(t, dir, start())
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: mode %v, error %v", info.Mode(), err)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".crt") {
			return nil
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAStartKeepsWhatLastsAndReissuesTheRest(t *testing.T) {
	dir, now := t.TempDir(), start()
	p := open(t, dir, now)
	lasting := []string{ClusterCA, ClusterCAKey, FrontProxyCA, EtcdCA, ServiceAccountKey, EncryptionConfig}
	renewed := []string{APIServerCert, APIServerKey, EtcdClientCert, EtcdClientKey, FrontProxyClientCert}
	before := map[string][]byte{}
	for _, name := range append(lasting, renewed...) {
		before[name] = read(t, p.Path(name))
	}
	*now = now.Add(time.Hour)
	p = open(t, dir, now)
	for _, name := range lasting {
		if !bytes.Equal(before[name], read(t, p.Path(name))) {
			t.Errorf("%s changed", name)
		}
	}
	for _, name := range renewed {
		if bytes.Equal(before[name], read(t, p.Path(name))) {
			t.Errorf("%s did not change", name)
		}
	}
}

func TestARenewalLeavesTheKeyAndExtendsTheCertificate(t *testing.T) {
	now := start()
	p := open(t, t.TempDir(), now)
	key := read(t, p.Path(APIServerKey))
	*now = now.Add(LeafLifetime / 3)
	if err := p.Renew(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(key, read(t, p.Path(APIServerKey))) {
		t.Error("the key changed while readers may pair it with the old certificate")
	}
	if _, err := tls.LoadX509KeyPair(p.Path(APIServerCert), p.Path(APIServerKey)); err != nil {
		t.Error(err)
	}
	if got, want := certificate(t, p.Path(APIServerCert)).NotAfter, now.Add(LeafLifetime); !got.Equal(want) {
		t.Errorf("valid until %v, want %v", got, want)
	}
}

func TestTheAdministratorsKubeconfigIsRenewedToo(t *testing.T) {
	dir, now := t.TempDir(), start()
	p := open(t, filepath.Join(dir, "pki"), now)
	path := filepath.Join(dir, "admin.kubeconfig")
	if err := p.IssueAdmin(path, "https://192.0.2.1:6443"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	*now = now.Add(LeafLifetime / 3)
	if err := p.Renew(); err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := parseCert(cfg.CertData)
	if err != nil {
		t.Fatal(err)
	}
	if got := cert.Subject.Organization; len(got) != 1 || got[0] != AdminGroup {
		t.Errorf("groups %v, want %s", got, AdminGroup)
	}
	if want := now.Add(LeafLifetime); !cert.NotAfter.Equal(want) {
		t.Errorf("valid until %v, want %v", cert.NotAfter, want)
	}
	if cfg.Host != "https://192.0.2.1:6443" || !bytes.Equal(cfg.CAData, p.ClusterCA()) {
		t.Errorf("server %q or CA is wrong", cfg.Host)
	}
}

func TestADamagedAuthorityIsReportedAndNotReplaced(t *testing.T) {
	other := open(t, t.TempDir(), start())
	tests := []struct {
		name   string
		damage func(*PKI) error
		want   string
	}{
		{"key lost", func(p *PKI) error { return os.Remove(p.Path(ClusterCAKey)) }, "missing key"},
		{"key of another CA", func(p *PKI) error {
			return os.WriteFile(p.Path(ClusterCAKey), read(t, other.Path(ClusterCAKey)), 0o600)
		}, "do not belong together"},
		{"certificate cut short", func(p *PKI) error { return os.WriteFile(p.Path(ClusterCA), nil, 0o644) }, "no PEM block"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := open(t, t.TempDir(), start())
			if err := tt.damage(p); err != nil {
				t.Fatal(err)
			}
			_, err := Open(p.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
		})
	}
}

func TestAFirstStartCutShortIsRepeated(t *testing.T) {
	now := start()
	p := open(t, t.TempDir(), now)
	// The key is written first, so this is what a crash leaves.
	if err := os.Remove(p.Path(ClusterCA)); err != nil {
		t.Fatal(err)
	}
	p = open(t, p.cfg.Dir, now)
	if block, _ := pem.Decode(p.ClusterCA()); block == nil {
		t.Error("there is no CA")
	}
}
