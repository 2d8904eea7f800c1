package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
)

// ensureCA leaves the certificate of the cluster's CA in cfg.caPath(): from
// CAFile, else the copy of an earlier start, else from the server itself, where
// only CAHash makes it trustworthy.
func ensureCA(ctx context.Context, cfg Config) error {
	if cfg.CAFile != "" {
		data, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return fmt.Errorf("read CA file: %w", err)
		}
		if _, err := parseCertificates(data); err != nil {
			return fmt.Errorf("CA file %s: %w", cfg.CAFile, err)
		}
		return writeFile(cfg.caPath(), data)
	}
	pin, err := parsePin(cfg.CAHash)
	if err != nil {
		return err
	}
	if data, err := os.ReadFile(cfg.caPath()); err == nil && (pin == nil || pinned(data, pin) != nil) {
		return nil
	}
	if pin == nil {
		return errors.New("no CA to trust: give this node the cluster's CA certificate or its sha256 hash")
	}
	data, err := discoverCA(ctx, cfg, pin)
	if err != nil {
		return err
	}
	return writeFile(cfg.caPath(), data)
}

// parsePin decodes "sha256:HEX"; nil for an empty string.
func parsePin(hash string) ([]byte, error) {
	if hash == "" {
		return nil, nil
	}
	digest, ok := strings.CutPrefix(strings.ToLower(hash), "sha256:")
	pin, err := hex.DecodeString(digest)
	if !ok || err != nil || len(pin) != sha256.Size {
		return nil, fmt.Errorf("CA hash %q is not of the form sha256:<64 hex digits>", hash)
	}
	return pin, nil
}

// discoverCA asks the server, unauthenticated and without believing it yet, for
// its CA, and accepts only the one with the pinned public key. It retries until
// ctx is done while the server cannot be reached.
func discoverCA(ctx context.Context, cfg Config, pin []byte) ([]byte, error) {
	lastLog := time.Time{}
	for {
		candidates, err := offeredCAs(ctx, cfg.Server)
		if ca := pinned(candidates, pin); ca != nil {
			return ca, nil
		}
		if err == nil {
			return nil, fmt.Errorf("%s belongs to another cluster: none of the CA certificates it shows has the hash %s", cfg.Server, cfg.CAHash)
		}
		if errors.Is(err, errNotPublished) {
			return nil, fmt.Errorf("%s: %w; give this node the CA certificate itself", cfg.Server, err)
		}
		if time.Since(lastLog) >= progressInterval {
			cfg.Log.Info("waiting for the API server", "server", cfg.Server, "error", err)
			lastLog = time.Now()
		}
		if !sleep(ctx, time.Second) {
			return nil, fmt.Errorf("fetch the CA from %s: %w", cfg.Server, err)
		}
	}
}

var errNotPublished = errors.New("the server does not show its CA to strangers (ConfigMap kube-public/cluster-info)")

// offeredCAs returns, in PEM, every certificate of the TLS handshake and those
// of ConfigMap kube-public/cluster-info. Nothing of it is verified.
func offeredCAs(ctx context.Context, server string) ([]byte, error) {
	client := &http.Client{
		Timeout: 10 * time.Second,
		// Nothing secret is sent, and what comes back is checked against the pin.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
	}
	url := strings.TrimSuffix(server, "/") + "/api/v1/namespaces/" + metav1.NamespacePublic + "/configmaps/" + bootstrapapi.ConfigMapClusterInfo
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var offered bytes.Buffer
	for _, cert := range response.TLS.PeerCertificates {
		offered.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	}
	if response.StatusCode != http.StatusOK {
		return offered.Bytes(), errNotPublished
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return offered.Bytes(), err
	}
	cas, err := clusterInfoCAs(body)
	offered.Write(cas)
	return offered.Bytes(), err
}

// clusterInfoCAs reads the CA out of the ConfigMap that the bootstrap signer
// maintains: a kubeconfig with one cluster.
func clusterInfoCAs(body []byte) ([]byte, error) {
	var info corev1.ConfigMap
	if err := runtime.DecodeInto(scheme.Codecs.UniversalDeserializer(), body, &info); err != nil {
		return nil, fmt.Errorf("decode cluster-info: %w", err)
	}
	config, err := clientcmd.Load([]byte(info.Data[bootstrapapi.KubeConfigKey]))
	if err != nil {
		return nil, fmt.Errorf("decode kubeconfig of cluster-info: %w", err)
	}
	var cas []byte
	for _, cluster := range config.Clusters {
		cas = append(cas, cluster.CertificateAuthorityData...)
	}
	return cas, nil
}

// pinned returns, in PEM, the certificate whose public key hashes to pin.
func pinned(pemData, pin []byte) []byte {
	certs, err := parseCertificates(pemData)
	if err != nil {
		return nil
	}
	for _, cert := range certs {
		if sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo); bytes.Equal(sum[:], pin) && cert.IsCA {
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
		}
	}
	return nil
}

// parseCertificates decodes one or more PEM certificates.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("holds no PEM certificate")
	}
	return certs, nil
}

// writeKubeconfig leaves a kubeconfig that names the other files in Dir.
func writeKubeconfig(cfg Config) error {
	pem := cfg.restConfig().CertFile
	config := clientcmdapi.NewConfig()
	config.Clusters["weft"] = &clientcmdapi.Cluster{Server: cfg.Server, CertificateAuthority: cfg.caPath()}
	config.AuthInfos["node"] = &clientcmdapi.AuthInfo{ClientCertificate: pem, ClientKey: pem}
	config.Contexts["node"] = &clientcmdapi.Context{Cluster: "weft", AuthInfo: "node"}
	config.CurrentContext = "node"
	data, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("encode kubeconfig: %w", err)
	}
	return writeFile(cfg.kubeconfigPath(), data)
}
