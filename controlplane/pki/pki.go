// Package pki keeps the control plane's keys and certificates in one
// directory: three certificate authorities that live for ten years, and the
// short-lived certificates they sign, which are issued anew at every start
// and renewed in process long before they expire.
//
//	ca              cluster CA ── apiserver, apiserver-kubelet-client, admin
//	                           └─ node certificates (signed by the CSR signer)
//	front-proxy-ca  aggregation ── front-proxy-client
//	etcd-ca         store ── etcd-server, etcd-client
//	sa.key          signs service-account tokens
//	encryption.yaml encrypts Secrets in the store
//
// Everything that reads these files notices a new certificate by itself (the
// API server watches them, etcd and client-go read them per handshake), so a
// renewal is one atomic rename: the certificate changes, its key stays until
// the next start.
package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Users and groups named in the certificates; the manifests bind roles to them.
const (
	// AdminUser and AdminGroup are whom admin.kubeconfig speaks for.
	AdminUser  = "weft-admin"
	AdminGroup = "weft:cluster-admins"
	// KubeletClientUser is the API server as seen by a node's port 10250.
	KubeletClientUser = "weft:apiserver-kubelet-client"
	// FrontProxyUser is the API server as seen by aggregated API servers.
	FrontProxyUser = "front-proxy-client"
)

// Files of the PKI directory that other packages name.
const (
	ClusterCA            = "ca.crt"
	ClusterCAKey         = "ca.key"
	FrontProxyCA         = "front-proxy-ca.crt"
	EtcdCA               = "etcd-ca.crt"
	APIServerCert        = "apiserver.crt"
	APIServerKey         = "apiserver.key"
	KubeletClientCert    = "apiserver-kubelet-client.crt"
	KubeletClientKey     = "apiserver-kubelet-client.key"
	FrontProxyClientCert = "front-proxy-client.crt"
	FrontProxyClientKey  = "front-proxy-client.key"
	EtcdServerCert       = "etcd-server.crt"
	EtcdServerKey        = "etcd-server.key"
	EtcdClientCert       = "etcd-client.crt"
	EtcdClientKey        = "etcd-client.key"
	ServiceAccountKey    = "sa.key"
	EncryptionConfig     = "encryption.yaml"
)

// Config says whom the certificates are for.
type Config struct {
	// Dir holds the files; it is made with mode 0700.
	Dir string
	// ClusterName names the cluster in certificates and kubeconfigs.
	ClusterName string
	// AdvertiseAddress is the address at which nodes reach this server.
	AdvertiseAddress netip.Addr
	// ServiceAddresses are those of the Service default/kubernetes.
	ServiceAddresses []netip.Addr
	// ClusterDomain is the DNS suffix of Services.
	ClusterDomain string
	// ExtraSANs are more names and addresses for the serving certificate.
	ExtraSANs []string
	// Log receives one line per renewal; nil means slog.Default().
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// PKI is an opened PKI directory.
type PKI struct {
	cfg     Config
	cluster *authority

	mu     sync.Mutex // guards issued
	issued []issued
}

// leaf describes one certificate.
type leaf struct {
	name       string
	commonName string
	groups     []string
	sans       []string
	usages     []x509.ExtKeyUsage
}

// issued is a leaf with the CA that signs it and the key it keeps until the
// next start. store puts a new certificate where its readers look.
type issued struct {
	leaf
	ca    *authority
	key   *ecdsa.PrivateKey
	store func(certPEM []byte) error
}

// Open reads the authorities and long-lived keys of cfg.Dir, makes those that
// are missing, and issues every short-lived certificate anew.
func Open(cfg Config) (*PKI, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make PKI directory: %w", err)
	}
	if err := os.Chmod(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make PKI directory: %w", err)
	}
	p := &PKI{cfg: cfg}
	if err := p.openKeys(); err != nil {
		return nil, err
	}
	if err := p.openCertificates(); err != nil {
		return nil, err
	}
	return p, p.Renew()
}

// IssueAdmin writes the administrator's kubeconfig for the API server at the
// URL server to path, and from then on renews the certificate in it.
func (p *PKI) IssueAdmin(path, server string) error {
	admin := leaf{
		name:       "admin",
		commonName: AdminUser,
		groups:     []string{AdminGroup},
		usages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	key, keyPEM, err := newLeafKey(admin.name)
	if err != nil {
		return err
	}
	store := func(certPEM []byte) error {
		data, err := Kubeconfig(p.cfg.ClusterName, server, p.cluster.pem, admin.commonName, certPEM, keyPEM)
		if err != nil {
			return err
		}
		return WriteFile(path, data, 0o600)
	}
	i := issued{leaf: admin, ca: p.cluster, key: key, store: store}
	if err := i.renew(p.cfg.Now()); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.issued = append(p.issued, i)
	return nil
}

// Path returns where the named file of the PKI directory is.
func (p *PKI) Path(name string) string { return filepath.Join(p.cfg.Dir, name) }

// ClusterCA returns the certificate of the cluster CA in PEM.
func (p *PKI) ClusterCA() []byte { return slices.Clone(p.cluster.pem) }

func (p *PKI) openKeys() error {
	_, err := readOrCreate(p.Path(ServiceAccountKey), func() ([]byte, error) {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		return encodeKey(key)
	})
	if err != nil {
		return err
	}
	_, err = readOrCreate(p.Path(EncryptionConfig), newEncryptionConfig)
	return err
}

func (p *PKI) openCertificates() error {
	now := p.cfg.Now()
	cluster, err := openAuthority(p.cfg.Dir, "ca", p.cfg.ClusterName+" cluster CA", now)
	if err != nil {
		return err
	}
	frontProxy, err := openAuthority(p.cfg.Dir, "front-proxy-ca", p.cfg.ClusterName+" front-proxy CA", now)
	if err != nil {
		return err
	}
	etcd, err := openAuthority(p.cfg.Dir, "etcd-ca", p.cfg.ClusterName+" etcd CA", now)
	if err != nil {
		return err
	}
	p.cluster = cluster

	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	both := append(slices.Clone(client), server...)
	files := []struct {
		ca *authority
		leaf
	}{
		{cluster, leaf{name: "apiserver", commonName: "kube-apiserver", sans: p.servingNames(), usages: server}},
		{cluster, leaf{name: "apiserver-kubelet-client", commonName: KubeletClientUser, usages: client}},
		{frontProxy, leaf{name: "front-proxy-client", commonName: FrontProxyUser, usages: client}},
		{etcd, leaf{name: "etcd-server", commonName: "etcd", sans: []string{"localhost", "127.0.0.1", "::1"}, usages: both}},
		{etcd, leaf{name: "etcd-client", commonName: "kube-apiserver-etcd-client", usages: client}},
	}
	for _, f := range files {
		if err := p.addFile(f.ca, f.leaf); err != nil {
			return err
		}
	}
	return nil
}

// servingNames are the names and addresses by which clients know the API
// server, from the outside, from pods and from this machine.
func (p *PKI) servingNames() []string {
	names := []string{
		"localhost", "127.0.0.1", "::1", p.cfg.AdvertiseAddress.String(),
		"kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc." + p.cfg.ClusterDomain,
	}
	for _, addr := range p.cfg.ServiceAddresses {
		names = append(names, addr.String())
	}
	for _, san := range p.cfg.ExtraSANs {
		if !slices.Contains(names, san) {
			names = append(names, san)
		}
	}
	return names
}

// addFile gives leaf a fresh key and keeps both as NAME.key and NAME.crt.
func (p *PKI) addFile(ca *authority, l leaf) error {
	key, keyPEM, err := newLeafKey(l.name)
	if err != nil {
		return err
	}
	if err := WriteFile(p.Path(l.name+".key"), keyPEM, 0o600); err != nil {
		return err
	}
	store := func(certPEM []byte) error { return WriteFile(p.Path(l.name+".crt"), certPEM, 0o644) }
	p.issued = append(p.issued, issued{leaf: l, ca: ca, key: key, store: store})
	return nil
}

// newLeafKey makes the key of the named certificate, also in PEM.
func newLeafKey(name string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, fmt.Errorf("make key of %s: %w", name, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("make key of %s: %w", name, err)
	}
	return key, keyPEM, nil
}

// renew issues the certificate again, for its present key.
func (i issued) renew(now time.Time) error {
	certPEM, err := i.ca.issue(i.leaf, i.key, now)
	if err == nil {
		err = i.store(certPEM)
	}
	if err != nil {
		return fmt.Errorf("issue certificate %s: %w", i.name, err)
	}
	return nil
}

// Renew issues every certificate again. One that fails does not keep the
// others from being renewed.
func (p *PKI) Renew() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, i := range p.issued {
		errs = append(errs, i.renew(p.cfg.Now()))
	}
	return errors.Join(errs...)
}

// Run renews the certificates when a third of their life is over, and retries
// hourly if that fails, until ctx is done.
func (p *PKI) Run(ctx context.Context) error {
	wait := LeafLifetime / 3
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		if err := p.Renew(); err != nil {
			p.cfg.Log.Error("Certificates could not be renewed", "error", err, "retryIn", time.Hour)
			wait = time.Hour
			continue
		}
		p.cfg.Log.Info("Certificates renewed", "validFor", LeafLifetime)
		wait = LeafLifetime / 3
	}
}
