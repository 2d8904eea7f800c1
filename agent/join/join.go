// Package join makes this machine a node of a cluster: it turns a bootstrap
// token into a client certificate of its own, keeps that certificate and the
// node API's serving certificate current, and survives restarts without
// the token.
//
//	token ──► CSR kube-apiserver-client-kubelet ──► client.pem ──► rest.Config
//	              client.pem ──► CSR kubelet-serving ──► serving.pem ──► TLS of port 10250
//
// Certificates are ECDSA P-256, one PEM file each with certificate and key,
// mode 0600, replaced atomically. The state directory also receives ca.crt
// and a kubeconfig that names these files, for people with kubectl.
package join

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	bootstrap "k8s.io/cluster-bootstrap/token/util"
)

// Config says which cluster to join, as which node, and where to remember it.
type Config struct {
	// NodeName is the name of the Node object; the certificate is issued to
	// system:node:NodeName, group system:nodes.
	NodeName string
	// Dir is the state directory, created with mode 0700. It then holds
	// client.pem, ca.crt and kubeconfig.
	Dir string
	// Server is the API server's URL, https://HOST:PORT.
	Server string
	// Token is a bootstrap token, ID.SECRET. It is needed only while Dir holds
	// no valid certificate.
	Token string
	// CAFile is the cluster's CA certificate. Without it CAHash, and from the
	// second start on the copy in Dir, tells which CA to trust.
	CAFile string
	// CAHash pins the CA when there is no CAFile: "sha256:" and the hex digest
	// of its public key (SubjectPublicKeyInfo), as kubeadm prints it.
	CAHash string
	// Log receives progress; nil is slog.Default().
	Log *slog.Logger
}

func (c *Config) validate() error {
	var errs []error
	if c.NodeName == "" {
		errs = append(errs, errors.New("node name is empty"))
	}
	if c.Dir == "" {
		errs = append(errs, errors.New("state directory is empty"))
	}
	if u, err := url.Parse(c.Server); err != nil || u.Scheme != "https" || u.Host == "" {
		errs = append(errs, fmt.Errorf("server %q is not of the form https://HOST:PORT", c.Server))
	}
	if c.Token != "" && !bootstrap.IsValidBootstrapToken(c.Token) {
		errs = append(errs, errors.New("token is not of the form ID.SECRET (6 and 16 lower-case letters or digits)"))
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return errors.Join(errs...)
}

// Client returns the connection of node cfg.NodeName to its API server. At
// first start it joins with the bootstrap token, and blocks, logging what it
// waits for, until the certificate is issued; later it uses the certificate
// in cfg.Dir at once, whether or not the server answers.
//
// Until ctx is done the certificate is renewed in the background; clients
// made from the result pick the new one up from disk. The error says what to
// do: it is final when the token is refused, the CA does not match or the
// request is denied; an unreachable server is retried until ctx is done.
func Client(ctx context.Context, cfg Config) (*rest.Config, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("join configuration: %w", err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	if err := ensureCA(ctx, cfg); err != nil {
		return nil, err
	}
	k, err := newClientKeeper(cfg)
	if err != nil {
		return nil, err
	}
	if err := k.load(time.Now()); err != nil {
		if cfg.Token == "" {
			return nil, fmt.Errorf("no usable certificate for node %s (%w) and no bootstrap token to ask for one: make a token on the server and give it to this node", cfg.NodeName, err)
		}
		cfg.Log.Info("joining the cluster", "server", cfg.Server, "node", cfg.NodeName, "reason", err.Error())
		if err := k.obtain(ctx, k.bootstrap); err != nil {
			return nil, fmt.Errorf("join %s as node %s: %w", cfg.Server, cfg.NodeName, err)
		}
	}
	if err := writeKubeconfig(cfg); err != nil {
		return nil, err
	}
	config := cfg.restConfig()
	if k.renew, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("client for %s: %w", cfg.Server, err)
	}
	go k.run(ctx)
	return config, nil
}

// restConfig names files instead of holding their contents, so that client-go
// itself notices a renewed certificate and reconnects with it.
func (c *Config) restConfig() *rest.Config {
	pem := filepath.Join(c.Dir, "client.pem")
	return &rest.Config{
		Host:      c.Server,
		UserAgent: "weft-agent",
		TLSClientConfig: rest.TLSClientConfig{
			CAFile:   c.caPath(),
			CertFile: pem,
			KeyFile:  pem,
		},
		QPS: -1, // the server's own fairness protects it
	}
}

func (c *Config) caPath() string { return filepath.Join(c.Dir, "ca.crt") }

func (c *Config) kubeconfigPath() string { return filepath.Join(c.Dir, "kubeconfig") }

// newClientKeeper keeps the node's client certificate. Its renew client can
// only be made once there is a certificate on disk.
func newClientKeeper(cfg Config) (*keeper, error) {
	k := &keeper{
		path:    filepath.Join(cfg.Dir, "client.pem"),
		signer:  certificatesv1.KubeAPIServerClientKubeletSignerName,
		usages:  []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		subject: nodeSubject(cfg.NodeName),
		log:     cfg.Log,
	}
	if cfg.Token == "" {
		return k, nil
	}
	config := rest.AnonymousClientConfig(cfg.restConfig())
	config.BearerToken = cfg.Token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", cfg.Server, err)
	}
	k.bootstrap = client
	return k, nil
}

// nodeSubject is the identity that the Node authorizer recognises, see
// https://kubernetes.io/docs/reference/access-authn-authz/node/.
func nodeSubject(node string) pkix.Name {
	return pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}
}
