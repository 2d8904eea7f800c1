package website

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// webhook is a running conversion webhook. Its certificate is its own and
// lives as long as it does; the CustomResourceDefinition carries it.
type webhook struct {
	*http.Server
	url         string
	certificate []byte // PEM
}

// startWebhook serves on a free port of address. Close ends it.
func startWebhook(address netip.Addr) (*webhook, error) {
	certificate, text, err := selfSigned(address)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	listener, err := net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /convert", serveConversion)
	hook := &webhook{
		Server: &http.Server{
			Handler:           mux,
			ReadHeaderTimeout: 5 * time.Second,
			TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13},
		},
		url:         "https://" + listener.Addr().String() + "/convert",
		certificate: text,
	}
	go func() {
		if err := hook.ServeTLS(listener, "", ""); err != http.ErrServerClosed {
			slog.Error("conversion webhook stopped", "error", err)
		}
	}()
	return hook, nil
}

// definition is crd.yaml with the address and certificate of the webhook.
func (h *webhook) definition() (*unstructured.Unstructured, error) {
	crd := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(crdYAML, &crd.Object); err != nil {
		return nil, fmt.Errorf("crd.yaml: %w", err)
	}
	clientConfig := map[string]any{"url": h.url, "caBundle": base64.StdEncoding.EncodeToString(h.certificate)}
	err := unstructured.SetNestedMap(crd.Object, clientConfig, "spec", "conversion", "webhook", "clientConfig")
	return crd, err
}

func selfSigned(address netip.Addr) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(now.UnixNano()),
		NotBefore:             now.Add(-time.Minute),
		NotAfter:              now.AddDate(1, 0, 0),
		IPAddresses:           []net.IP{address.AsSlice()},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, text, nil
}
