package l7

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// restAfterFailure is how long an endpoint that could not be reached is
	// chosen only if there is no other.
	restAfterFailure = 5 * time.Second
	// idleUpstream is below the keep-alive time of common servers (60 s and
	// more), so that we close an idle connection before they do.
	idleUpstream = 50 * time.Second
	// unackedUpstream closes connections whose peer has vanished without a
	// word (TCP_USER_TIMEOUT, tcp(7)).
	unackedUpstream = 10 * time.Second
	maxIdlePerHost  = 256
)

// cluster chooses among endpoints. The pools behind them outlive it.
type cluster struct {
	config    Cluster
	endpoints []*pool
	turn      atomic.Uint32
}

func newCluster(config Cluster) (*cluster, error) {
	var errs []error
	switch config.Scheme {
	case PlainHTTP, H2C, TLS:
	default:
		errs = append(errs, fmt.Errorf("scheme %q is none of %s, %s, %s", config.Scheme, PlainHTTP, TLS, H2C))
	}
	if config.Roots != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(config.Roots)) {
		errs = append(errs, errors.New("roots hold no PEM certificate"))
	}
	for _, endpoint := range config.Endpoints {
		if _, _, err := net.SplitHostPort(endpoint); err != nil {
			errs = append(errs, fmt.Errorf("endpoint %s: %w", endpoint, err))
		}
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = DefaultConnectTimeout
	}
	return &cluster{config: config}, errors.Join(errs...)
}

// pick returns the endpoint for one more attempt, or nil if each one was
// tried. Endpoints take turns, so that each gets requests; of two neighbours
// the one with fewer requests under way is taken, and one that could not be
// reached lately only if there is no other.
func (c *cluster) pick(tried []*pool, now time.Time) *pool {
	n := len(c.endpoints)
	if n == 0 {
		return nil
	}
	start := int(c.turn.Add(1)-1) % n
	var best, resting *pool
	seen := 0
	for i := 0; i < n && seen < 2; i++ {
		p := c.endpoints[(start+i)%n]
		switch {
		case slices.Contains(tried, p):
		case p.isResting(now):
			if resting == nil {
				resting = p
			}
		default:
			seen++
			if best == nil || p.inFlight.Load() < best.inFlight.Load() {
				best = p
			}
		}
	}
	if best == nil {
		return resting
	}
	return best
}

// poolKey says which endpoints can share connections.
type poolKey struct {
	address           string
	scheme            Scheme
	serverName, roots string
	connectTimeout    time.Duration
}

func (c *Cluster) key(endpoint string) poolKey {
	return poolKey{address: endpoint, scheme: c.Scheme, serverName: c.ServerName, roots: c.Roots, connectTimeout: c.ConnectTimeout}
}

// pool holds the connections to one endpoint. It lives as long as any
// snapshot names the endpoint.
type pool struct {
	key       poolKey
	transport *http.Transport
	inFlight  atomic.Int64
	// restUntil is in Unix nanoseconds.
	restUntil atomic.Int64
	isRetired atomic.Bool
}

func newPool(key poolKey) *pool {
	dialer := &net.Dialer{
		Timeout:         key.connectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		Control:         setUserTimeout,
	}
	var protocols http.Protocols
	protocols.SetHTTP1(key.scheme != H2C)
	protocols.SetHTTP2(key.scheme == TLS)
	protocols.SetUnencryptedHTTP2(key.scheme == H2C)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, key.address)
			if err != nil {
				return nil, err
			}
			return &countedConn{Conn: conn}, nil
		},
		Protocols:              &protocols,
		TLSClientConfig:        key.tlsConfig(),
		TLSHandshakeTimeout:    key.connectTimeout,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxIdlePerHost,
		IdleConnTimeout:        idleUpstream,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: unackedUpstream},
	}
	return &pool{key: key, transport: transport}
}

func (k poolKey) tlsConfig() *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: k.serverName, InsecureSkipVerify: k.serverName == ""}
	if k.roots != "" {
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM([]byte(k.roots))
	}
	return config
}

func setUserTimeout(_, _ string, c syscall.RawConn) error {
	var err error
	if ctrlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedUpstream.Milliseconds()))
	}); ctrlErr != nil {
		return ctrlErr
	}
	return err
}

func (p *pool) isResting(now time.Time) bool { return now.UnixNano() < p.restUntil.Load() }

func (p *pool) rest(now time.Time) { p.restUntil.Store(now.Add(restAfterFailure).UnixNano()) }

// acquire counts a request under way; each one needs a release.
func (p *pool) acquire() { p.inFlight.Add(1) }

func (p *pool) release() {
	if p.inFlight.Add(-1) == 0 && p.isRetired.Load() {
		p.transport.CloseIdleConnections()
	}
}

// retire closes idle connections now and busy ones when they become idle.
func (p *pool) retire() {
	p.isRetired.Store(true)
	p.transport.CloseIdleConnections()
}

// countedConn knows whether anything was written, which tells a request that
// was never sent from one that may have been acted upon.
type countedConn struct {
	net.Conn
	written atomic.Int64
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}
