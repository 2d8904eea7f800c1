// Package dns is the cluster DNS of one node. Cluster names are answered from
// the agent's own watch, everything else by the node's resolvers.
//
//	pod ──10.96.0.10:53──► dataplane ──► node address:10053
//	                                        │ zone: Services, EndpointSlices (informers)
//	                                        └ forward: resolv.conf, cache
//
// Names and answers follow "Kubernetes DNS-Based Service Discovery" 1.1.0
// (github.com/kubernetes/dns, docs/specification.md); where it leaves a
// choice, CoreDNS's is taken.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/informers"
)

// maxUDP is the largest answer sent in a datagram, whatever the client
// allows: it fits every link unfragmented (DNS flag day 2020).
const maxUDP = 1232

// Config of a Server.
type Config struct {
	// Cluster has Services, EndpointSlices and Namespaces.
	Cluster informers.SharedInformerFactory
	// Listen are the addresses served, each by UDP and TCP.
	Listen []netip.AddrPort
	// Domain is the cluster domain, e.g. "cluster.local".
	Domain string
	// ClusterDNS are the addresses pods send to: those of ns.dns.DOMAIN, and
	// never upstream of ourselves.
	ClusterDNS []netip.Addr
	// Prefixes hold all pods and ClusterIPs: the names of other addresses are
	// for upstream to know.
	Prefixes []netip.Prefix
	// ResolvConf names the upstream resolvers (resolv.conf(5)). It is read
	// again when it changes.
	ResolvConf string
	// Registerer gets the metrics; none if nil.
	Registerer prometheus.Registerer
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

func (c *Config) validate() error {
	switch {
	case c.Cluster == nil:
		return errors.New("dns: Cluster informers must be set")
	case len(c.Listen) == 0:
		return errors.New("dns: Listen must have an address")
	case c.ResolvConf == "":
		return errors.New("dns: ResolvConf must be set")
	}
	if _, ok := dns.IsDomainName(c.Domain); !ok || strings.Trim(c.Domain, ".") == "" {
		return fmt.Errorf("dns: Domain: %q is not a domain name", c.Domain)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Server answers DNS questions on this node.
type Server struct {
	cfg     Config
	zone    *zone
	forward *forwarder
	metrics *metrics
}

// New registers with the informers and starts nothing.
func New(cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	records, err := watch(cfg.Cluster)
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	return &Server{
		cfg:     cfg,
		zone:    &zone{domain: dns.CanonicalName(cfg.Domain), dnsAddrs: cfg.ClusterDNS, prefixes: cfg.Prefixes, records: records},
		forward: newForwarder(cfg.ResolvConf, own(cfg)),
		metrics: m,
	}, nil
}

// own are the addresses that lead to ourselves.
func own(cfg Config) map[netip.AddrPort]bool {
	addrs := map[netip.AddrPort]bool{}
	for _, a := range cfg.ClusterDNS {
		addrs[netip.AddrPortFrom(a, 53)] = true
	}
	for _, a := range cfg.Listen {
		addrs[a] = true
	}
	return addrs
}

// Run serves until ctx is done. Until the informers have synced, questions
// about the cluster get SERVFAIL, which clients repeat; the others are
// forwarded from the start.
func (s *Server) Run(ctx context.Context) error {
	servers, err := s.listen(ctx)
	if err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	failed := make(chan error, len(servers))
	var wg sync.WaitGroup
	for _, server := range servers {
		wg.Go(func() { failed <- server.ActivateAndServe() })
	}
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for _, server := range servers {
		// Cannot fail but for a server that has ended already.
		_ = server.Shutdown()
	}
	wg.Wait()
	if ctx.Err() != nil || err == nil {
		return nil
	}
	return fmt.Errorf("dns: %w", err)
}

// listen opens all sockets, or none.
func (s *Server) listen(ctx context.Context) (servers []*dns.Server, err error) {
	var open []interface{ Close() error }
	defer func() {
		if err != nil {
			for _, o := range open {
				err = errors.Join(err, o.Close())
			}
		}
	}()
	var lc net.ListenConfig
	for _, addr := range s.cfg.Listen {
		packets, err := lc.ListenPacket(ctx, "udp", addr.String())
		if err != nil {
			return nil, err
		}
		open = append(open, packets)
		conns, err := lc.Listen(ctx, "tcp", addr.String())
		if err != nil {
			return nil, err
		}
		open = append(open, conns)
		servers = append(servers,
			&dns.Server{PacketConn: packets, Handler: s, UDPSize: dns.MaxMsgSize},
			&dns.Server{Listener: conns, Handler: s})
	}
	return servers, nil
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	resp, source := s.resolve(ctx, req)
	_, isUDP := w.RemoteAddr().(*net.UDPAddr)
	fit(resp, req, isUDP)
	// A client that has gone away meanwhile cannot be told.
	_ = w.WriteMsg(resp)
	s.metrics.observe(source, isUDP, resp.Rcode, time.Since(start))
}

// fit makes an answer fit its transport and the client's EDNS0 (RFC 6891).
func fit(resp, req *dns.Msg, isUDP bool) {
	size := dns.MaxMsgSize
	if isUDP {
		size = dns.MinMsgSize
	}
	if opt := req.IsEdns0(); opt != nil {
		if isUDP {
			size = max(dns.MinMsgSize, min(int(opt.UDPSize()), maxUDP))
		}
		if resp.IsEdns0() == nil {
			resp.SetEdns0(maxUDP, opt.Do())
		}
	}
	resp.Compress = true
	resp.Truncate(size)
}
