package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"weft.dev/weft/controlplane/pki"
)

// freePorts returns two TCP ports that nothing listens on.
func freePorts(t *testing.T) (int, int) {
	t.Helper()
	var ports [2]int
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports[0], ports[1]
}

func keys(t *testing.T) *pki.PKI {
	t.Helper()
	p, err := pki.Open(pki.Config{
		Dir:              filepath.Join(t.TempDir(), "pki"),
		ClusterName:      "test",
		ClusterDomain:    "cluster.local",
		AdvertiseAddress: netip.MustParseAddr("192.0.2.1"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func start(t *testing.T, dir string, p *pki.PKI) *Member {
	t.Helper()
	clients, peers := freePorts(t)
	m, err := Start(t.Context(), Config{
		Dir:        dir,
		ClientPort: clients,
		PeerPort:   peers,
		CAFile:     p.Path(pki.EtcdCA),
		CertFile:   p.Path(pki.EtcdServerCert),
		KeyFile:    p.Path(pki.EtcdServerKey),
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// client returns a client of m, with the given certificates.
func client(t *testing.T, m *Member, p *pki.PKI, certs ...tls.Certificate) *clientv3.Client {
	t.Helper()
	ca, err := os.ReadFile(p.Path(pki.EtcdCA))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{m.NetworkEndpoint()},
		TLS:       &tls.Config{RootCAs: pool, Certificates: certs},
		Logger:    zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestWhatWasWrittenIsThereAfterARestart(t *testing.T) {
	dir, p := filepath.Join(t.TempDir(), "etcd"), keys(t)
	pair, err := tls.LoadX509KeyPair(p.Path(pki.EtcdClientCert), p.Path(pki.EtcdClientKey))
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, dir, p)
	if _, err := client(t, m, p, pair).Put(t.Context(), "key", "value"); err != nil {
		t.Fatal(err)
	}
	m.Close()
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: mode %v, error %v", info.Mode(), err)
	}

	m = start(t, dir, p)
	defer m.Close()
	resp, err := client(t, m, p, pair).Get(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "value" {
		t.Errorf("read %v", resp.Kvs)
	}
}

func TestClientsInTheProcessNeedNoCertificate(t *testing.T) {
	p := keys(t)
	m := start(t, filepath.Join(t.TempDir(), "etcd"), p)
	defer m.Close()
	local, err := clientv3.New(clientv3.Config{Endpoints: []string{m.LocalEndpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	if _, err := local.Put(t.Context(), "key", "value"); err != nil {
		t.Error(err)
	}
}

func TestADirectoryThatWasThereIsClosedToOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer start(t, dir, keys(t)).Close()
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: mode %v, error %v", info.Mode(), err)
	}
}

func TestADirectoryTooLongForASocketIsRefused(t *testing.T) {
	_, err := Start(t.Context(), Config{Dir: filepath.Join(t.TempDir(), strings.Repeat("d", 100)), ClientPort: 2379, PeerPort: 2380})
	if err == nil || !strings.Contains(err.Error(), "shorter state directory") {
		t.Errorf("error %v", err)
	}
}

func TestAClientWithoutACertificateIsRefused(t *testing.T) {
	p := keys(t)
	m := start(t, filepath.Join(t.TempDir(), "etcd"), p)
	defer m.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := client(t, m, p).Get(ctx, "key"); err == nil {
		t.Error("it may read")
	}
}

func TestBadPortsAreRefusedByName(t *testing.T) {
	tests := []struct {
		name           string
		clients, peers int
		want           string
	}{
		{"no client port", 0, 2380, "client port"},
		{"a peer port out of range", 2379, 70000, "peer port: 70000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Start(t.Context(), Config{Dir: t.TempDir(), ClientPort: tt.clients, PeerPort: tt.peers})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
		})
	}
}
