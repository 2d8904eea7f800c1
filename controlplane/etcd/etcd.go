// Package etcd runs the store inside this process: one etcd member. The API
// server keeps its objects by calling it (Client). What needs a connection
// reaches it through a Unix socket in its directory, which only root may enter,
// and is spared the cost of TLS; tools at the loopback interface, where only
// clients with a certificate of the etcd CA are admitted.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
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
	local    string
	network  string
	logLevel zap.AtomicLevel
}

// Start starts the member and returns when it serves. Close stops it.
func Start(ctx context.Context, cfg Config) (*Member, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make etcd directory: %w", err)
	}
	// The directory's mode is what guards the socket in it.
	if err := os.Chmod(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("close etcd directory to others: %w", err)
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
	m := &Member{etcd: e, local: ec.ListenClientUrls[0].String(), network: ec.AdvertiseClientUrls[0].String(), logLevel: level}
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
	socket, err := socketURL(cfg.Dir)
	if err != nil {
		return nil, err
	}
	ec.ListenClientUrls, ec.AdvertiseClientUrls = []url.URL{socket, clients}, []url.URL{clients}
	ec.ListenPeerUrls, ec.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	ec.InitialCluster = ec.Name + "=" + peers.String()
	ec.InitialClusterToken = "weft"
	ec.ClientTLSInfo, ec.PeerTLSInfo = tls, tls
	ec.QuotaBackendBytes = quotaBytes
	ec.EnableGRPCGateway = false
	return ec, nil
}

func loopbackURL(port int) (url.URL, error) {
	if port < 1 || port > 65535 {
		return url.URL{}, fmt.Errorf("%d is not a TCP port", port)
	}
	host := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return url.URL{Scheme: "https", Host: host}, nil
}

// socketURL returns the URL of the socket in dir.
func socketURL(dir string) (url.URL, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return url.URL{}, fmt.Errorf("etcd directory: %w", err)
	}
	socket := filepath.Join(dir, "client.sock")
	if len(socket) > longestSocket {
		return url.URL{}, fmt.Errorf("etcd directory %s: too long by %d characters for a socket in it; choose a shorter state directory", dir, len(socket)-longestSocket)
	}
	return url.URL{Scheme: "unix", Path: socket}, nil
}

// SocketEndpoint returns the URL at which the member in dir serves those who
// may enter dir, as Member.LocalEndpoint does to those who have the member.
func SocketEndpoint(dir string) (string, error) {
	socket, err := socketURL(dir)
	return socket.String(), err
}

// longestSocket is how long the path of a Unix socket may be (unix(7)).
const longestSocket = 107

// LocalEndpoint returns the URL for clients in this process; they need no
// certificate.
func (m *Member) LocalEndpoint() string { return m.local }

// NetworkEndpoint returns the URL for clients with a certificate.
func (m *Member) NetworkEndpoint() string { return m.network }

// Err reports that the member can no longer serve.
func (m *Member) Err() <-chan error { return m.etcd.Err() }

// Close stops serving and closes the database. Everything a client was told
// has been written is on disk already, so this only saves time at the next start.
func (m *Member) Close() {
	m.logLevel.SetLevel(zap.FatalLevel)
	m.etcd.Close()
}
