package l7

import (
	"iter"
	"net"
	"net/url"
	"slices"
	"strings"
)

// hosts finds values by host pattern (Host.Pattern).
type hosts[T any] struct {
	exact map[string]T
	// one and many are keyed by what follows "*." and "**.".
	one, many map[string]T
	any       T
	hasAny    bool
}

func newHosts[T any]() hosts[T] {
	return hosts[T]{exact: map[string]T{}, one: map[string]T{}, many: map[string]T{}}
}

func (h *hosts[T]) put(pattern string, value T) {
	pattern = strings.ToLower(pattern)
	switch {
	case pattern == "":
		h.any, h.hasAny = value, true
	case strings.HasPrefix(pattern, "**."):
		h.many[pattern[3:]] = value
	case strings.HasPrefix(pattern, "*."):
		h.one[pattern[2:]] = value
	default:
		h.exact[pattern] = value
	}
}

// matching yields the values whose pattern covers host, most specific first.
// host is lower case and has no port.
func (h *hosts[T]) matching(host string) iter.Seq[T] {
	return func(yield func(T) bool) {
		if value, ok := h.exact[host]; ok && !yield(value) {
			return
		}
		rest, isFirst := host, true
		for {
			label, parent, found := strings.Cut(rest, ".")
			if !found {
				break
			}
			if value, ok := h.one[parent]; ok && isFirst && label != "" && !yield(value) {
				return
			}
			if value, ok := h.many[parent]; ok && (label != "" || !isFirst) && !yield(value) {
				return
			}
			rest, isFirst = parent, false
		}
		if h.hasAny {
			yield(h.any)
		}
	}
}

// first returns the value of the most specific pattern that covers host.
func (h *hosts[T]) first(host string) (value T, ok bool) {
	for value := range h.matching(host) {
		return value, true
	}
	return value, false
}

// Head is what routing sees of a request.
type Head struct {
	Method string
	// Host is lower case, without port and trailing dot.
	Host string
	// Path is decoded, except that an encoded slash stays %2F: it is part of
	// an element, not between two.
	Path string
	// Header and Query return the first value of a name.
	Header, Query func(name string) (value string, ok bool)
}

// NormalHost returns the host of an authority as Head.Host has it.
func NormalHost(authority string) string {
	host := authority
	if h, _, err := net.SplitHostPort(authority); err == nil {
		host = h
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// NormalPath returns an escaped path as Head.Path has it. ok is false for
// paths that two programs could understand differently: with . and ..
// elements, which clients must resolve (RFC 3986 §5.2.4), with NUL, or
// escaped wrongly.
func NormalPath(escaped string) (path string, ok bool) {
	if !strings.HasPrefix(escaped, "/") {
		return "", escaped == "*"
	}
	if strings.Contains(escaped, "%") {
		kept := strings.NewReplacer("%2f", "%252F", "%2F", "%252F").Replace(escaped)
		decoded, err := url.PathUnescape(kept)
		if err != nil {
			return "", false
		}
		escaped = decoded
	}
	if strings.ContainsRune(escaped, 0) {
		return "", false
	}
	for element := range strings.SplitSeq(escaped, "/") {
		if element == "." || element == ".." {
			return "", false
		}
	}
	return escaped, true
}

// paths finds routes by path within one host.
type paths struct {
	exact map[string][]*route
	// prefix has keys without trailing slashes, so / is empty.
	prefix   map[string][]*route
	fallback *route
}

func newPaths() *paths {
	return &paths{exact: map[string][]*route{}, prefix: map[string][]*route{}}
}

// put adds r after the routes that were added before it.
func (p *paths) put(r *route) {
	if r.match.PathKind == Exact {
		p.exact[r.match.Path] = append(p.exact[r.match.Path], r)
		return
	}
	key := strings.TrimRight(r.match.Path, "/")
	p.prefix[key] = append(p.prefix[key], r)
}

// sort orders the routes of each path as Match says; call it after the last put.
func (p *paths) sort() {
	for _, routes := range p.exact {
		slices.SortStableFunc(routes, moreSpecific)
	}
	for _, routes := range p.prefix {
		slices.SortStableFunc(routes, moreSpecific)
	}
}

func moreSpecific(a, b *route) int {
	if (a.match.Method == "") != (b.match.Method == "") {
		return len(b.match.Method) - len(a.match.Method)
	}
	if d := len(b.match.Headers) - len(a.match.Headers); d != 0 {
		return d
	}
	return len(b.match.Query) - len(a.match.Query)
}

// find returns the most specific route that matches head, or nil.
func (p *paths) find(head *Head) *route {
	if r := firstAccepting(p.exact[head.Path], head); r != nil {
		return r
	}
	for prefix := head.Path; ; {
		if r := firstAccepting(p.prefix[prefix], head); r != nil {
			return r
		}
		cut := strings.LastIndexByte(prefix, '/')
		if cut < 0 {
			return nil
		}
		prefix = prefix[:cut]
	}
}

func firstAccepting(routes []*route, head *Head) *route {
	for _, r := range routes {
		if r.match.accepts(head) {
			return r
		}
	}
	return nil
}

// accepts compares everything but the path.
func (m *Match) accepts(head *Head) bool {
	if m.Method != "" && m.Method != head.Method {
		return false
	}
	return all(m.Headers, head.Header) && all(m.Query, head.Query)
}

func all(fields []Field, get func(string) (string, bool)) bool {
	for _, field := range fields {
		if value, ok := get(field.Name); !ok || value != field.Value {
			return false
		}
	}
	return true
}
