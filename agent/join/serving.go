package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
)

// ServingConfig describes the certificate of this node's own HTTPS server.
type ServingConfig struct {
	NodeName string
	// Dir is the state directory; the certificate is serving.pem in it.
	Dir string
	// Client acts as the node: only the node itself may ask for this.
	Client kubernetes.Interface
	// Addresses and Hostnames become subject alternative names. The approving
	// controller compares them with the Node's status.addresses.
	Addresses []netip.Addr
	Hostnames []string
	// Log receives progress; nil is slog.Default().
	Log *slog.Logger
}

// Serving keeps the node's serving certificate, issued by the cluster's CA
// (signer kubernetes.io/kubelet-serving); it is never self-signed.
type Serving struct {
	keeper *keeper
	log    *slog.Logger
}

// ServingCertificate takes the certificate of an earlier start if it still
// fits; otherwise Run asks for one.
func ServingCertificate(cfg ServingConfig) (*Serving, error) {
	var errs []error
	if cfg.NodeName == "" {
		errs = append(errs, errors.New("node name is empty"))
	}
	if cfg.Client == nil {
		errs = append(errs, errors.New("client is missing"))
	}
	if len(cfg.Addresses)+len(cfg.Hostnames) == 0 {
		errs = append(errs, errors.New("neither addresses nor host names: the API server could not verify this node"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	k := &keeper{
		path:     filepath.Join(cfg.Dir, "serving.pem"),
		signer:   certificatesv1.KubeletServingSignerName,
		usages:   []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
		subject:  nodeSubject(cfg.NodeName),
		dnsNames: cfg.Hostnames,
		renew:    cfg.Client,
		log:      cfg.Log,
	}
	for _, a := range cfg.Addresses {
		k.ips = append(k.ips, net.IP(a.Unmap().AsSlice()))
	}
	if err := k.load(time.Now()); err != nil {
		cfg.Log.Debug("serving certificate to be requested", "reason", err.Error())
	}
	return &Serving{keeper: k, log: cfg.Log}, nil
}

// Run obtains and renews the certificate until ctx is done.
func (s *Serving) Run(ctx context.Context) error {
	s.keeper.run(ctx)
	return nil
}

// GetCertificate is for tls.Config. Until the certificate is issued it fails,
// and with it the handshake. It may be called concurrently.
func (s *Serving) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := s.keeper.current.Load(); cert != nil {
		return cert, nil
	}
	s.log.Warn("TLS handshake refused: the serving certificate is not issued yet", "signer", s.keeper.signer, "client", hello.Conn.RemoteAddr().String())
	return nil, errors.New("the node's serving certificate is not issued yet")
}
