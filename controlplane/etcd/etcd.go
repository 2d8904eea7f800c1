// Package etcd runs the store inside this process: one etcd member that
// listens on the loopback interface and admits only clients with a
// certificate of the etcd CA.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// startTimeout bounds how long reading the log and snapshot may take.
const startTimeout = 5 * time.Minute

// quotaBytes is how large the database may grow before etcd refuses writes.
const quotaBytes = 8 << 30

// Config says where the member keeps its data and how it is reached.
type Config struct {
	// Dir holds the database; it is made with mode 0700.
	Dir string
	// ClientPort and PeerPort are TCP ports on 127.0.0.1.
	ClientPort, PeerPort int
	// CAFile, CertFile and KeyFile are PEM files. The certificate serves, and
	// speaks to peers; they are read again at every handshake.
	CAFile, CertFile, KeyFile string
	// Log receives etcd's errors; nil means slog.Default().
	Log *slog.Logger
}

// Member is a running etcd.
type Member struct {
	etcd     *embed.Etcd
	endpoint string
	logLevel zap.AtomicLevel
}

// Start starts the member and returns when it serves. Close stops it.
func Start(ctx context.Context, cfg Config) (*Member, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make etcd directory: %w", err)
	}
	ec, err := embedConfig(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	// Its warnings are for those who tune a large cluster.
	level := zap.NewAtomicLevelAt(zap.ErrorLevel)
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newLogger(cfg.Log, level))
	e, err := embed.StartEtcd(ec)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	m := &Member{etcd: e, endpoint: ec.AdvertiseClientUrls[0].String(), logLevel: level}
	if err := m.waitReady(ctx); err != nil {
		e.Close()
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	return m, nil
}

func (m *Member) waitReady(ctx context.Context) error {
	select {
	case <-m.etcd.Server.ReadyNotify():
		return nil
	case err := <-m.etcd.Err():
		return err
	case <-m.etcd.Server.StopNotify():
		return errors.New("stopped while starting")
	case <-time.After(startTimeout):
		return fmt.Errorf("not ready after %s", startTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func embedConfig(cfg Config) (*embed.Config, error) {
	clients, err := loopbackURL(cfg.ClientPort)
	if err != nil {
		return nil, fmt.Errorf("etcd client port: %w", err)
	}
	peers, err := loopbackURL(cfg.PeerPort)
	if err != nil {
		return nil, fmt.Errorf("etcd peer port: %w", err)
	}
	tls := transport.TLSInfo{
		TrustedCAFile:  cfg.CAFile,
		CertFile:       cfg.CertFile,
		KeyFile:        cfg.KeyFile,
		ClientCertAuth: true,
	}
	ec := embed.NewConfig()
	ec.Name = "weft"
	ec.Dir = cfg.Dir
	ec.ListenClientUrls, ec.AdvertiseClientUrls = clients, clients
	ec.ListenPeerUrls, ec.AdvertisePeerUrls = peers, peers
	ec.InitialCluster = ec.Name + "=" + peers[0].String()
	ec.InitialClusterToken = "weft"
	ec.ClientTLSInfo, ec.PeerTLSInfo = tls, tls
	ec.QuotaBackendBytes = quotaBytes
	ec.EnableGRPCGateway = false
	return ec, nil
}

func loopbackURL(port int) ([]url.URL, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("%d is not a TCP port", port)
	}
	host := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return []url.URL{{Scheme: "https", Host: host}}, nil
}

// Endpoint returns the URL for clients.
func (m *Member) Endpoint() string { return m.endpoint }

// Err reports that the member can no longer serve.
func (m *Member) Err() <-chan error { return m.etcd.Err() }

// Close stops serving and closes the database. Everything a client was told
// has been written is on disk already, so this only saves time at the next start.
func (m *Member) Close() {
	m.logLevel.SetLevel(zap.FatalLevel)
	m.etcd.Close()
}
