package dns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// The bounds of forwarding.
const (
	upstreamTimeout = 2 * time.Second // per try
	upstreamRounds  = 2               // through all resolvers
	maxInFlight     = 1000            // questions; more are refused
	reloadInterval  = 5 * time.Second // between looks at resolv.conf
)

// forwarder asks the node's resolvers, in the order of resolv.conf, and
// remembers answers for a while.
type forwarder struct {
	path     string
	own      map[netip.AddrPort]bool
	cache    *answerCache
	inFlight chan struct{}

	mu        sync.Mutex
	upstreams []string // host:port
	lookedAt  time.Time
	modified  time.Time
}

func newForwarder(resolvConf string, own map[netip.AddrPort]bool) *forwarder {
	return &forwarder{path: resolvConf, own: own, cache: newAnswerCache(), inFlight: make(chan struct{}, maxInFlight)}
}

// resolve always returns a response to req: SERVFAIL if no resolver answers.
func (f *forwarder) resolve(ctx context.Context, req *dns.Msg) *dns.Msg {
	if resp := f.cache.get(req, time.Now()); resp != nil {
		return resp
	}
	select {
	case f.inFlight <- struct{}{}:
		defer func() { <-f.inFlight }()
	default:
		return new(dns.Msg).SetRcode(req, dns.RcodeRefused)
	}
	resp := f.ask(ctx, req)
	if resp == nil {
		resp = new(dns.Msg).SetRcode(req, dns.RcodeServerFailure)
		resp.RecursionAvailable = true
		return resp
	}
	f.cache.put(req, resp, time.Now())
	return resp
}

// ask returns the first answer of any resolver, nil if there is none. A
// resolver that fails or refuses is no answer as long as others are left.
func (f *forwarder) ask(ctx context.Context, req *dns.Msg) *dns.Msg {
	var worst *dns.Msg
	for range upstreamRounds {
		for _, server := range f.servers(time.Now()) {
			if ctx.Err() != nil {
				return worst
			}
			resp, err := exchange(ctx, req, server)
			if err != nil {
				continue
			}
			if resp.Rcode != dns.RcodeServerFailure && resp.Rcode != dns.RcodeRefused {
				return resp
			}
			worst = resp
		}
		if worst != nil {
			return worst
		}
	}
	return nil
}

// exchange asks one resolver by UDP, then by TCP if the answer was cut off.
func exchange(ctx context.Context, req *dns.Msg, server string) (*dns.Msg, error) {
	query := req.Copy()
	query.Id = dns.Id()
	client := &dns.Client{Net: "udp", Timeout: upstreamTimeout, UDPSize: dns.MaxMsgSize}
	resp, _, err := client.ExchangeContext(ctx, query, server)
	if err == nil && resp.Truncated {
		client.Net = "tcp"
		var whole *dns.Msg
		if whole, _, err = client.ExchangeContext(ctx, query, server); err == nil {
			resp = whole
		} else {
			err = nil // what is cut off still says so
		}
	}
	if err != nil {
		return nil, err
	}
	if len(resp.Question) != 1 || dns.CanonicalName(resp.Question[0].Name) != dns.CanonicalName(req.Question[0].Name) ||
		resp.Question[0].Qtype != req.Question[0].Qtype {
		return nil, dns.ErrId
	}
	resp.Id, resp.Question = req.Id, req.Question
	return resp, nil
}

// servers returns the resolvers of resolv.conf, without those that lead back
// to us. While the file cannot be read, the last ones stay.
func (f *forwarder) servers(now time.Time) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.lookedAt) < reloadInterval {
		return f.upstreams
	}
	f.lookedAt = now
	info, err := os.Stat(f.path)
	if err != nil || info.ModTime().Equal(f.modified) {
		return f.upstreams
	}
	conf, err := dns.ClientConfigFromFile(f.path)
	if err != nil {
		return f.upstreams
	}
	f.modified, f.upstreams = info.ModTime(), f.usable(conf)
	return f.upstreams
}

func (f *forwarder) usable(conf *dns.ClientConfig) []string {
	port, err := strconv.ParseUint(conf.Port, 10, 16)
	if err != nil {
		port = 53
	}
	var servers []string
	for _, s := range conf.Servers {
		addr, err := netip.ParseAddr(s)
		if err != nil || f.own[netip.AddrPortFrom(addr.Unmap(), uint16(port))] {
			continue
		}
		servers = append(servers, net.JoinHostPort(s, strconv.FormatUint(port, 10)))
	}
	return servers
}
