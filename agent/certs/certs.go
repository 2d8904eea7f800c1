// Package certs issues and renews certificates for the ingress.
//
//	hosts ──Manage──► certmagic ──Issuer──► Weft's own CA (later ACME)
//	                     │
//	                     ├─ Secrets of weft-system      certificates and keys
//	                     └─ ConfigMaps of weft-system   locks: one issues, all use
//
// Every node runs it. What one has issued, the others load; each renews in
// time, the first does it and the others find it done. Nothing here talks to
// anything but the API server: no OCSP, no certificate transparency, no ARI.
package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"k8s.io/client-go/kubernetes"

	"weft.dev/weft/controlplane/api"
)

const (
	// issueWait is how long a handshake waits for a certificate that is being
	// issued, before it gets the default one.
	issueWait = 3 * time.Second
	// issuers is how many certificates are obtained at once.
	issuers = 4

	firstRetry = time.Second
	lastRetry  = time.Minute
)

// Config is what Certificates needs.
type Config struct {
	// Node names this replica in locks.
	Node   string
	Client kubernetes.Interface
	// Namespace holds Secrets and locks; empty means api.SystemNamespace.
	Namespace string
	// Issuer signs; nil means Weft's own CA, which is made if there is none.
	Issuer certmagic.Issuer
	Log    *slog.Logger
}

// Certificates keeps certificates for hosts. Its methods may be called
// concurrently.
type Certificates struct {
	cfg     Config
	storage *storage
	cache   *certmagic.Cache
	// ready is closed when magic and fallback are set.
	ready    chan struct{}
	magic    *certmagic.Config
	fallback *tls.Certificate
	slots    chan struct{}

	mu sync.Mutex
	// managed are the hosts to have certificates for; the function ends the
	// work on one that is no longer wanted.
	managed map[string]context.CancelFunc
	wanted  []string
	changed chan struct{}
}

// New returns Certificates that do nothing until Run.
func New(cfg Config) (*Certificates, error) {
	if cfg.Client == nil {
		return nil, errors.New("certs: Client is required")
	}
	if cfg.Node == "" {
		return nil, errors.New("certs: Node is required")
	}
	if cfg.Namespace == "" {
		cfg.Namespace = api.SystemNamespace
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Certificates{
		cfg:     cfg,
		storage: newStorage(cfg.Client, cfg.Namespace, cfg.Node),
		ready:   make(chan struct{}),
		slots:   make(chan struct{}, issuers),
		managed: map[string]context.CancelFunc{},
		changed: make(chan struct{}, 1),
	}, nil
}

// Run issues and renews until ctx is done.
func (c *Certificates) Run(ctx context.Context) error {
	if err := c.start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer c.cache.Stop()
	var work sync.WaitGroup
	defer work.Wait()
	for {
		c.reconcile(ctx, &work)
		select {
		case <-ctx.Done():
			return nil
		case <-c.changed:
		}
	}
}

// start loads or makes the CA; it tries until that works or ctx is done.
func (c *Certificates) start(ctx context.Context) error {
	ca, err := untilDone(ctx, c.cfg.Log, "load the ingress CA", func() (*authority, error) {
		return ensureAuthority(ctx, c.cfg.Client, c.cfg.Namespace, time.Now())
	})
	if err != nil {
		return err
	}
	if c.fallback, err = ca.fallbackCertificate(time.Now()); err != nil {
		return fmt.Errorf("make the default certificate: %w", err)
	}
	var issuer certmagic.Issuer = ca
	if c.cfg.Issuer != nil {
		issuer = c.cfg.Issuer
	}
	logger := zap.New(&slogCore{log: c.cfg.Log})
	c.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return c.magic, nil },
		Logger:           logger,
	})
	c.magic = certmagic.New(c.cache, certmagic.Config{
		Issuers:             []certmagic.Issuer{issuer},
		KeySource:           certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		Storage:             c.storage,
		OCSP:                certmagic.OCSPConfig{DisableStapling: true},
		DisableARI:          true,
		DisableStorageCheck: true,
		Logger:              logger,
	})
	close(c.ready)
	return nil
}

// Manage makes hosts, exact names or *.name, the ones that have
// certificates. Others are no longer renewed.
func (c *Certificates) Manage(hosts []string) {
	c.mu.Lock()
	c.wanted = hosts
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// reconcile starts work on hosts that are new and ends it on those that are
// gone.
func (c *Certificates) reconcile(ctx context.Context, work *sync.WaitGroup) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted := map[string]bool{}
	for _, host := range c.wanted {
		wanted[host] = true
		if c.managed[host] != nil {
			continue
		}
		hostCtx, cancel := context.WithCancel(ctx)
		c.managed[host] = cancel
		work.Go(func() { c.obtain(hostCtx, host) })
	}
	for host, cancel := range c.managed {
		if !wanted[host] {
			cancel()
			delete(c.managed, host)
			c.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: host}})
		}
	}
}

// obtain loads or issues the certificate of host; from then on certmagic
// renews it.
func (c *Certificates) obtain(ctx context.Context, host string) {
	_, _ = untilDone(ctx, c.cfg.Log.With("host", host), "obtain a certificate", func() (struct{}, error) {
		select {
		case c.slots <- struct{}{}:
			defer func() { <-c.slots }()
		case <-ctx.Done():
			return struct{}{}, ctx.Err()
		}
		return struct{}{}, c.magic.ManageSync(ctx, []string{host})
	})
}

// Certificate returns the certificate for the name that hello asks for. If
// it is still being issued, it waits a moment and then returns Default's.
func (c *Certificates) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(hello.Context(), issueWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if cert := c.lookup(hello); cert != nil {
			return cert, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return c.Default()
		}
	}
}

func (c *Certificates) lookup(hello *tls.ClientHelloInfo) *tls.Certificate {
	select {
	case <-c.ready:
	default:
		return nil
	}
	matching := c.cache.AllMatchingCertificates(hello.ServerName)
	if len(matching) == 0 {
		return nil
	}
	chosen, err := certmagic.DefaultCertificateSelector(hello, matching)
	if err != nil {
		return nil
	}
	return &chosen.Certificate
}

// Default returns the certificate for clients that ask for a name without a
// certificate. It fails until the CA is known.
func (c *Certificates) Default() (*tls.Certificate, error) {
	select {
	case <-c.ready:
		return c.fallback, nil
	default:
		return nil, errors.New("the ingress CA is not loaded yet")
	}
}

// untilDone calls f until it succeeds or ctx is done, whose error it returns then.
func untilDone[T any](ctx context.Context, log *slog.Logger, what string, f func() (T, error)) (T, error) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		value, err := f()
		if err == nil {
			return value, nil
		}
		if ctx.Err() != nil {
			return value, ctx.Err()
		}
		log.Warn("will try again", "attempt", what, "in", wait, "error", err)
		select {
		case <-ctx.Done():
			return value, ctx.Err()
		case <-time.After(wait):
		}
	}
}
