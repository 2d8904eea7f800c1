package l7

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxHeaderBytes bounds the headers of requests and responses.
	maxHeaderBytes = 128 << 10
	// readHeaderTimeout bounds how slowly a client may send its headers.
	readHeaderTimeout = 10 * time.Second
	// idleClient is how long a client's connection may stay unused.
	idleClient = 75 * time.Second
	// drainTimeout is how long requests of a removed listener may go on.
	drainTimeout = 30 * time.Second
)

// Certificates finds certificates for TLS handshakes.
type Certificates interface {
	// Certificate returns the certificate that a Config calls name. An error
	// ends the handshake. It is called concurrently.
	Certificate(name string, hello *tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Options are what a Server has for life.
type Options struct {
	// Certificates may be nil if no Config has an HTTPS listener.
	Certificates Certificates
	// Registerer takes the metrics; nil means none are exported.
	Registerer prometheus.Registerer
	// Log gets one debug record per request; nil means slog.Default().
	Log *slog.Logger
}

// Server is the running engine.
type Server struct {
	options Options
	metrics *metrics
	current atomic.Pointer[snapshot]
	// ctx ends when the last connection must go.
	ctx  context.Context
	stop context.CancelFunc

	// applying guards what follows: one Apply or Close at a time.
	applying sync.Mutex
	sockets  map[string]*socket
	pools    map[poolKey]*pool
	draining sync.WaitGroup
	isClosed bool
}

// New returns a Server that listens nowhere until the first Apply.
func New(options Options) *Server {
	if options.Log == nil {
		options.Log = slog.Default()
	}
	s := &Server{
		options: options,
		metrics: newMetrics(options.Registerer),
		sockets: map[string]*socket{},
		pools:   map[poolKey]*pool{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.current.Store(&snapshot{})
	return s
}

// Apply makes the server do what c says. It opens new listeners first, then
// switches all requests that begin from now on, then drains removed
// listeners in the background and closes idle connections to removed
// endpoints. If c is wrong or a listener cannot be opened, nothing changes.
func (s *Server) Apply(ctx context.Context, c Config) error {
	next, err := compile(c)
	if err != nil {
		return fmt.Errorf("compile l7 config: %w", err)
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	if s.isClosed {
		return errors.New("l7: server is closed")
	}
	opened, err := s.open(ctx, next)
	if err != nil {
		return err
	}
	pools := s.bindPools(next)
	s.metrics.bind(next)

	s.current.Store(next)

	for _, k := range opened {
		s.sockets[k.address] = k
		go k.serve()
	}
	for address, k := range s.sockets {
		if next.listeners[address] == nil {
			delete(s.sockets, address)
			s.drain(k)
		}
	}
	for key, p := range s.pools {
		if pools[key] == nil {
			p.retire()
		}
	}
	s.pools = pools
	s.metrics.forgetExcept(next)
	return nil
}

// open listens on the addresses of next that are not open yet: all or none.
func (s *Server) open(ctx context.Context, next *snapshot) (opened []*socket, err error) {
	for address, l := range next.listeners {
		if s.sockets[address] != nil {
			continue
		}
		k, err := s.listen(ctx, address)
		if err != nil {
			for _, k := range opened {
				k.Close()
			}
			return nil, fmt.Errorf("listener %s: %w", l.config.Name, err)
		}
		opened = append(opened, k)
	}
	return opened, nil
}

// bindPools gives the clusters of next their endpoints' pools, those in use
// where there are any.
func (s *Server) bindPools(next *snapshot) map[poolKey]*pool {
	pools := map[poolKey]*pool{}
	for _, c := range next.clusters {
		for _, endpoint := range c.config.Endpoints {
			key := c.config.key(endpoint)
			if pools[key] == nil {
				pools[key] = s.pools[key]
			}
			if pools[key] == nil {
				pools[key] = newPool(key)
			}
			c.endpoints = append(c.endpoints, pools[key])
		}
	}
	return pools
}

func (s *Server) drain(k *socket) {
	s.draining.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, drainTimeout)
		defer cancel()
		if err := k.http.Shutdown(ctx); err != nil {
			k.http.Close()
		}
	})
}

// Close stops accepting, waits for requests under way until ctx is done, and
// then closes what is left, WebSockets included. The error is ctx's if it
// had to.
func (s *Server) Close(ctx context.Context) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	if s.isClosed {
		return nil
	}
	s.isClosed = true
	defer s.stop()
	for _, k := range s.sockets {
		s.draining.Go(func() {
			if err := k.http.Shutdown(ctx); err != nil {
				k.http.Close()
			}
		})
	}
	drained := make(chan struct{})
	go func() {
		s.draining.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-ctx.Done():
	}
	for _, p := range s.pools {
		p.retire()
	}
	return ctx.Err()
}

// Addresses returns the real address of each listener by its configured one,
// for listeners on port 0.
func (s *Server) Addresses() map[string]net.Addr {
	s.applying.Lock()
	defer s.applying.Unlock()
	addresses := map[string]net.Addr{}
	for address, k := range s.sockets {
		addresses[address] = k.Addr()
	}
	return addresses
}

// socket is one open listening socket. Whether it speaks TLS is looked up
// for each connection, so a listener can change its protocol without closing.
type socket struct {
	net.Listener
	address string
	server  *Server
	http    *http.Server
	tls     *tls.Config
}

func (s *Server) listen(ctx context.Context, address string) (*socket, error) {
	inner, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	k := &socket{Listener: inner, address: address, server: s}
	k.tls = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: k.certificate,
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	k.http = &http.Server{
		Handler:           k,
		Protocols:         &protocols,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleClient,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.options.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
	}
	return k, nil
}

func (k *socket) serve() {
	if err := k.http.Serve(k); err != nil && !errors.Is(err, http.ErrServerClosed) {
		k.server.options.Log.Error("listener failed", "address", k.address, "error", err)
	}
}

// Accept wraps connections to HTTPS listeners in TLS.
func (k *socket) Accept() (net.Conn, error) {
	conn, err := k.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if l := k.listener(); l != nil && l.config.Protocol == HTTPS {
		return tls.Server(conn, k.tls), nil
	}
	return conn, nil
}

// listener returns what the socket serves now, or nil while it closes.
func (k *socket) listener() *listener {
	return k.server.current.Load().listeners[k.address]
}

func (k *socket) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	l := k.listener()
	if l == nil || k.server.options.Certificates == nil {
		return nil, errors.New("no certificates")
	}
	name, ok := l.certificates.first(NormalHost(hello.ServerName))
	if !ok || hello.ServerName == "" {
		name = l.config.DefaultCertificate
	}
	return k.server.options.Certificates.Certificate(name, hello)
}
