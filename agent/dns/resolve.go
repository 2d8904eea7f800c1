package dns

import (
	"context"
	"time"

	"github.com/miekg/dns"
)

// answerTimeout bounds one question; stub resolvers give up after five
// seconds (resolv.conf(5), timeout).
const answerTimeout = 5 * time.Second

// maxChase bounds chains of CNAMEs within the cluster.
const maxChase = 8

// The sources of answers, a label of the metrics.
const (
	sourceCluster = "cluster"
	sourceForward = "forward"
	sourceRefused = "refused"
)

// resolve answers any message. The response always belongs to req.
func (s *Server) resolve(ctx context.Context, req *dns.Msg) (resp *dns.Msg, source string) {
	if rcode, isRefused := refuse(req); isRefused {
		resp = new(dns.Msg).SetRcode(req, rcode)
		return resp, sourceRefused
	}
	q := req.Question[0]
	r, isOurs := s.answerCluster(ctx, q)
	if !isOurs {
		return s.forward.resolve(ctx, req), sourceForward
	}
	resp = new(dns.Msg).SetRcode(req, r.rcode)
	resp.Authoritative, resp.RecursionAvailable = true, true
	resp.Answer, resp.Ns, resp.Extra = r.answer, r.authority, r.extra
	return resp, sourceCluster
}

// refuse says which messages are not answered, and how.
func refuse(req *dns.Msg) (rcode int, isRefused bool) {
	if req.Opcode != dns.OpcodeQuery {
		return dns.RcodeNotImplemented, true
	}
	if len(req.Question) != 1 {
		return dns.RcodeFormatError, true
	}
	if opt := req.IsEdns0(); opt != nil && opt.Version() != 0 {
		return dns.RcodeBadVers, true
	}
	switch q := req.Question[0]; {
	case q.Qclass != dns.ClassINET, q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR:
		return dns.RcodeRefused, true
	case q.Qtype == dns.TypeANY: // RFC 8482 lets servers decline
		return dns.RcodeNotImplemented, true
	}
	return 0, false
}

// answerCluster answers what the cluster knows. An ExternalName's target is
// looked up as well, within the cluster or upstream.
func (s *Server) answerCluster(ctx context.Context, q dns.Question) (r reply, isOurs bool) {
	r, isOurs = s.zone.answer(q)
	for range maxChase {
		if r.chase == "" {
			return r, isOurs
		}
		target := dns.Question{Name: r.chase, Qtype: q.Qtype, Qclass: q.Qclass}
		next, isCluster := s.zone.answer(target)
		if !isCluster {
			next = s.chaseUpstream(ctx, target)
		}
		r = reply{rcode: next.rcode, answer: append(r.answer, next.answer...), authority: next.authority, extra: next.extra, chase: next.chase}
	}
	return reply{rcode: dns.RcodeServerFailure, answer: r.answer}, isOurs
}

func (s *Server) chaseUpstream(ctx context.Context, q dns.Question) reply {
	req := new(dns.Msg)
	req.Id, req.RecursionDesired, req.Question = dns.Id(), true, []dns.Question{q}
	resp := s.forward.resolve(ctx, req)
	return reply{rcode: resp.Rcode, answer: resp.Answer, authority: resp.Ns}
}
