package apiserver

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"go.etcd.io/etcd/client/v3/kubernetes"

	"weft.dev/weft/controlplane/pki"
)

// Etcd says how to reach the store.
type Etcd struct {
	// Endpoints are URLs, of scheme https or unix.
	Endpoints []string
	// CAFile, CertFile and KeyFile are PEM files for mutual TLS; "" for unix.
	CAFile, CertFile, KeyFile string
	// Client, if the store is in this process, returns a client that calls it
	// without a connection.
	Client func() (*kubernetes.Client, error)
}

// Config says how the API server serves.
type Config struct {
	// PKIDir is the directory of package pki.
	PKIDir string
	// Dir is where the API server's own configuration files go.
	Dir string
	// AdvertiseAddress is the address of the Service default/kubernetes's
	// endpoint. It must not be a loopback address.
	AdvertiseAddress netip.Addr
	// BindPort is the TCP port, on all addresses.
	BindPort int
	// ServiceCIDRs are one prefix, or one of each family.
	ServiceCIDRs []netip.Prefix
	// ClusterDomain is the DNS suffix of Services, as in the issuer of
	// service-account tokens.
	ClusterDomain string
	// Etcd is the store.
	Etcd Etcd
}

func (c Config) validate() error {
	switch {
	case !c.AdvertiseAddress.IsValid():
		return errors.New("advertise address: must be set")
	case c.AdvertiseAddress.IsLoopback() || c.AdvertiseAddress.IsUnspecified():
		return fmt.Errorf("advertise address %s: nodes must be able to reach it", c.AdvertiseAddress)
	case len(c.ServiceCIDRs) == 0:
		return errors.New("service CIDR: must be set")
	case len(c.Etcd.Endpoints) == 0:
		return errors.New("etcd endpoints: must be set")
	}
	return nil
}

// args are the flags of kube-apiserver that make it serve as c says; what is
// not named keeps upstream's default.
func (c Config) args() []string {
	file := func(name string) string { return filepath.Join(c.PKIDir, name) }
	prefixes := make([]string, len(c.ServiceCIDRs))
	for i, p := range c.ServiceCIDRs {
		prefixes[i] = p.String()
	}
	return []string{
		"--advertise-address=" + c.AdvertiseAddress.String(),
		"--secure-port=" + strconv.Itoa(c.BindPort),
		"--service-cluster-ip-range=" + strings.Join(prefixes, ","),
		"--allow-privileged=true",
		"--profiling=false",
		// At a stop, watches are told to end instead of being waited for.
		"--shutdown-watch-termination-grace-period=2s",

		"--etcd-servers=" + strings.Join(c.Etcd.Endpoints, ","),
		"--etcd-cafile=" + c.Etcd.CAFile,
		"--etcd-certfile=" + c.Etcd.CertFile,
		"--etcd-keyfile=" + c.Etcd.KeyFile,
		"--encryption-provider-config=" + file(pki.EncryptionConfig),

		"--tls-cert-file=" + file(pki.APIServerCert),
		"--tls-private-key-file=" + file(pki.APIServerKey),
		"--client-ca-file=" + file(pki.ClusterCA),
		"--authentication-config=" + c.authenticationFile(),
		"--enable-bootstrap-token-auth=true",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",

		"--service-account-issuer=https://kubernetes.default.svc." + c.ClusterDomain,
		"--service-account-signing-key-file=" + file(pki.ServiceAccountKey),
		"--service-account-key-file=" + file(pki.ServiceAccountKey),

		// Aggregated API servers trust this server's word about who a user is.
		"--requestheader-client-ca-file=" + file(pki.FrontProxyCA),
		"--requestheader-allowed-names=" + pki.FrontProxyUser,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-uid-headers=X-Remote-Uid",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + file(pki.FrontProxyClientCert),
		"--proxy-client-key-file=" + file(pki.FrontProxyClientKey),
		// Webhooks and aggregated API servers are called at pod addresses, so
		// the server's host needs no Service load balancing.
		"--enable-aggregator-routing=true",

		"--kubelet-certificate-authority=" + file(pki.ClusterCA),
		"--kubelet-client-certificate=" + file(pki.KubeletClientCert),
		"--kubelet-client-key=" + file(pki.KubeletClientKey),
		"--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
	}
}

func (c Config) authenticationFile() string { return filepath.Join(c.Dir, "authentication.yaml") }

// authentication admits requests without credentials to the health endpoints
// and nowhere else.
const authentication = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
    - path: /livez
    - path: /readyz
    - path: /healthz
`
