package certs

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/caddyserver/certmagic"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// AuthorityName is the Secret with the CA's certificate and key, and the
	// ConfigMap with the certificate alone, for users to trust.
	AuthorityName = "weft-ca"
	// AuthorityKey is the certificate's key in the ConfigMap.
	AuthorityKey = "ca.crt"

	authorityLifetime = 10 * 365 * 24 * time.Hour
	leafLifetime      = 30 * 24 * time.Hour
	// clockSkew is how far behind a client's clock may be.
	clockSkew = time.Hour
)

// authority is Weft's own CA. It implements certmagic.Issuer.
type authority struct {
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
}

// ensureAuthority loads the CA from its Secret. If there is none it makes
// one: creating the Secret is atomic, so of several replicas one wins and the
// others load what it made. It publishes the certificate in the ConfigMap.
func ensureAuthority(ctx context.Context, client kubernetes.Interface, namespace string, now time.Time) (*authority, error) {
	secrets := client.CoreV1().Secrets(namespace)
	secret, err := secrets.Get(ctx, AuthorityName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		var made *corev1.Secret
		if made, err = newAuthoritySecret(now); err != nil {
			return nil, err
		}
		secret, err = secrets.Create(ctx, made, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			secret, err = secrets.Get(ctx, AuthorityName, metav1.GetOptions{})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", namespace, AuthorityName, err)
	}
	ca, err := parseAuthority(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", namespace, AuthorityName, err)
	}
	if err := ca.publish(ctx, client, namespace); err != nil {
		return nil, fmt.Errorf("configmap %s/%s: %w", namespace, AuthorityName, err)
	}
	return ca, nil
}

func newAuthoritySecret(now time.Time) (*corev1.Secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Weft ingress CA"},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(authorityLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyPEM, err := certmagic.PEMEncodePrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: AuthorityName},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{corev1.TLSCertKey: encodeCert(der), corev1.TLSPrivateKeyKey: keyPEM},
	}, nil
}

func parseAuthority(certPEM, keyPEM []byte) (*authority, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	if !pair.Leaf.IsCA {
		return nil, errors.New("tls.crt is not the certificate of a CA")
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("tls.key cannot sign")
	}
	return &authority{cert: pair.Leaf, pem: certPEM, key: key}, nil
}

// publish makes the ConfigMap hold the CA's certificate.
func (ca *authority) publish(ctx context.Context, client kubernetes.Interface, namespace string) error {
	maps := client.CoreV1().ConfigMaps(namespace)
	want := map[string]string{AuthorityKey: string(ca.pem)}
	have, err := maps.Get(ctx, AuthorityName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		created := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: AuthorityName}, Data: want}
		_, err = maps.Create(ctx, created, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}
	if err != nil || have.Data[AuthorityKey] == want[AuthorityKey] {
		return err
	}
	have = have.DeepCopy()
	have.Data = want
	_, err = maps.Update(ctx, have, metav1.UpdateOptions{})
	return err
}

// IssuerKey implements certmagic.Issuer. Another CA has another key, so a
// replaced CA issues all certificates anew.
func (ca *authority) IssuerKey() string {
	sum := sha256.Sum256(ca.cert.RawSubjectPublicKeyInfo)
	return AuthorityName + "-" + hex.EncodeToString(sum[:4])
}

// Issue implements certmagic.Issuer.
func (ca *authority) Issue(_ context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	template := &x509.Certificate{DNSNames: csr.DNSNames, IPAddresses: csr.IPAddresses}
	der, err := ca.sign(template, csr.PublicKey, time.Now())
	if err != nil {
		return nil, err
	}
	return &certmagic.IssuedCertificate{Certificate: encodeCert(der)}, nil
}

func (ca *authority) sign(template *x509.Certificate, public crypto.PublicKey, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = now.Add(-clockSkew)
	template.NotAfter = now.Add(leafLifetime)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	template.BasicConstraintsValid = true
	return x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
}

// fallbackCertificate makes the certificate for unknown names. It stays in
// memory and names itself, so that a client's error says what is wrong.
func (ca *authority) fallbackCertificate(now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "Weft ingress default certificate"},
		DNSNames: []string{"no-certificate-for-this-name.weft.invalid"},
	}
	der, err := ca.sign(template, key.Public(), now)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// newSerial returns 127 random bits (RFC 5280 §4.1.2.2 allows 20 octets).
func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
