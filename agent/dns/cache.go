package dns

import (
	"sync"
	"time"

	"github.com/miekg/dns"
)

// The bounds of the cache. The time is CoreDNS's usual one in clusters.
const (
	maxCached    = 10_000
	maxCacheTime = 30 * time.Second
)

// answerCache remembers answers of upstream for their TTL.
type answerCache struct {
	mu      sync.Mutex
	entries map[cacheKey]cacheEntry
}

// cacheKey is all of a question that may change the answer.
type cacheKey struct {
	name   string
	qtype  uint16
	do, cd bool // EDNS0 "DNSSEC OK", "checking disabled"
	isEDNS bool
}

type cacheEntry struct {
	msg    *dns.Msg
	stored time.Time
	until  time.Time
}

func newAnswerCache() *answerCache {
	return &answerCache{entries: map[cacheKey]cacheEntry{}}
}

func keyOf(req *dns.Msg) cacheKey {
	key := cacheKey{name: dns.CanonicalName(req.Question[0].Name), qtype: req.Question[0].Qtype, cd: req.CheckingDisabled}
	if opt := req.IsEdns0(); opt != nil {
		key.isEDNS, key.do = true, opt.Do()
	}
	return key
}

// get returns a response to req with the TTLs that are left, or nil.
func (c *answerCache) get(req *dns.Msg, now time.Time) *dns.Msg {
	c.mu.Lock()
	e, ok := c.entries[keyOf(req)]
	c.mu.Unlock()
	if !ok || !now.Before(e.until) {
		return nil
	}
	resp := e.msg.Copy()
	resp.Id, resp.Question = req.Id, req.Question
	age := uint32(now.Sub(e.stored) / time.Second)
	for _, section := range [][]dns.RR{resp.Answer, resp.Ns, resp.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(h.Ttl, age)
			}
		}
	}
	return resp
}

// put remembers resp as long as it may be; a full cache forgets some other.
func (c *answerCache) put(req, resp *dns.Msg, now time.Time) {
	d := lifetime(resp)
	if d <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxCached {
		c.forgetSome(now)
	}
	c.entries[keyOf(req)] = cacheEntry{msg: resp.Copy(), stored: now, until: now.Add(d)}
}

// forgetSome looks at a few entries, in the random order of maps, and forgets
// those that are over; at least one.
func (c *answerCache) forgetSome(now time.Time) {
	const look = 20
	looked := 0
	for key, e := range c.entries {
		if looked == 0 || !now.Before(e.until) {
			delete(c.entries, key)
		}
		if looked++; looked == look {
			return
		}
	}
}

// lifetime is the smallest TTL of an answer, or for a negative one what its
// SOA allows (RFC 2308 section 5); zero for what must not be kept.
func lifetime(resp *dns.Msg) time.Duration {
	if resp.Truncated || resp.Rcode != dns.RcodeSuccess && resp.Rcode != dns.RcodeNameError {
		return 0
	}
	seconds, isKnown := uint32(maxCacheTime/time.Second), false
	for _, rr := range resp.Answer {
		seconds, isKnown = min(seconds, rr.Header().Ttl), true
	}
	for _, rr := range resp.Ns {
		seconds = min(seconds, rr.Header().Ttl)
		if soa, ok := rr.(*dns.SOA); ok {
			seconds, isKnown = min(seconds, soa.Minttl), true
		}
	}
	if !isKnown {
		return 0
	}
	return time.Duration(seconds) * time.Second
}
