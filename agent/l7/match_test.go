package l7

import (
	"net/url"
	"strings"
	"testing"
)

func TestHostsMatchMostSpecificFirst(t *testing.T) {
	h := newHosts[string]()
	for _, pattern := range []string{"", "a.example.com", "*.example.com", "**.example.com", "**.com", "*.b.example.com"} {
		h.put(pattern, pattern)
	}
	for _, c := range []struct{ name, host, want string }{
		{"an exact name wins over wildcards", "a.example.com", "a.example.com|*.example.com|**.example.com|**.com|"},
		{"one star is exactly one label", "x.y.example.com", "**.example.com|**.com|"},
		{"a longer suffix wins", "x.b.example.com", "*.b.example.com|**.example.com|**.com|"},
		{"a wildcard does not match its own suffix", "example.com", "**.com|"},
		{"an unknown name has only the pattern for all", "localhost", ""},
		{"an empty label is no label", ".example.com", "**.com|"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for pattern := range h.matching(c.host) {
				got = append(got, pattern)
			}
			if joined := strings.Join(got, "|"); joined != c.want {
				t.Errorf("%s matches %q, want %q", c.host, joined, c.want)
			}
		})
	}
}

func TestPathsMatchAsIngressAndGatewayWant(t *testing.T) {
	// The first rows are the table of
	// https://kubernetes.io/docs/concepts/services-networking/ingress/#examples
	for _, c := range []struct {
		name, routes, path, want string
	}{
		{"prefix / matches all", "Prefix /", "/any/path", "Prefix /"},
		{"exact matches itself", "Exact /foo", "/foo", "Exact /foo"},
		{"exact does not match another", "Exact /foo", "/bar", ""},
		{"exact does not match a trailing slash", "Exact /foo", "/foo/", ""},
		{"exact with a slash does not match without", "Exact /foo/", "/foo", ""},
		{"prefix matches itself", "Prefix /foo", "/foo", "Prefix /foo"},
		{"prefix matches a trailing slash", "Prefix /foo", "/foo/", "Prefix /foo"},
		{"prefix with a slash matches without", "Prefix /foo/", "/foo", "Prefix /foo/"},
		{"prefix with a slash matches with", "Prefix /foo/", "/foo/", "Prefix /foo/"},
		{"prefix compares whole elements", "Prefix /aaa/bb", "/aaa/bbb", ""},
		{"prefix of two elements", "Prefix /aaa/bbb", "/aaa/bbb", "Prefix /aaa/bbb"},
		{"prefix ignores its trailing slash", "Prefix /aaa/bbb/", "/aaa/bbb", "Prefix /aaa/bbb/"},
		{"prefix matches a subpath", "Prefix /aaa/bbb", "/aaa/bbb/ccc", "Prefix /aaa/bbb"},
		{"prefix is no prefix of the string", "Prefix /aaa/bbb", "/aaa/bbbxyz", ""},
		{"the longest prefix wins", "Prefix /|Prefix /aaa", "/aaa/ccc", "Prefix /aaa"},
		{"the shorter prefix takes the rest", "Prefix /|Prefix /aaa", "/ccc", "Prefix /"},
		{"exact wins over prefix", "Prefix /foo|Exact /foo", "/foo", "Exact /foo"},
		{"case matters", "Prefix /foo", "/FOO", ""},
		{"an empty element is an element", "Prefix /a/b", "/a//b", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPaths()
			for text := range strings.SplitSeq(c.routes, "|") {
				kind, path, _ := strings.Cut(text, " ")
				p.put(&route{name: text, match: Match{PathKind: PathKind(kind), Path: path}})
			}
			p.sort()
			if got := nameOf(p.find(&Head{Path: c.path})); got != c.want {
				t.Errorf("%s goes to %q, want %q", c.path, got, c.want)
			}
		})
	}
}

func nameOf(r *route) string {
	if r == nil {
		return ""
	}
	return r.name
}

func TestMethodHeadersAndQueryDecideAmongEqualPaths(t *testing.T) {
	field := func(name, value string) []Field { return []Field{{name, value}} }
	p := newPaths()
	for _, r := range []*route{
		{name: "any", match: Match{Path: "/", PathKind: Prefix}},
		{name: "query", match: Match{Path: "/", PathKind: Prefix, Query: field("v", "2")}},
		{name: "header", match: Match{Path: "/", PathKind: Prefix, Headers: field("X-Version", "2")}},
		{name: "post", match: Match{Path: "/", PathKind: Prefix, Method: "POST"}},
		{name: "long", match: Match{Path: "/long", PathKind: Prefix, Headers: field("X-Version", "2")}},
	} {
		p.put(r)
	}
	p.sort()
	for _, c := range []struct{ name, method, path, header, query, want string }{
		{"nothing special", "GET", "/", "", "", "any"},
		{"a query parameter", "GET", "/", "", "2", "query"},
		{"another value of the query parameter", "GET", "/", "", "3", "any"},
		{"a header wins over a query parameter", "GET", "/", "2", "2", "header"},
		{"a method wins over both", "POST", "/", "2", "2", "post"},
		{"a longer path wins over the method", "POST", "/long", "2", "", "long"},
		{"a longer path without its header does not match", "GET", "/long", "", "", "any"},
	} {
		t.Run(c.name, func(t *testing.T) {
			get := func(value string) func(string) (string, bool) {
				return func(string) (string, bool) { return value, value != "" }
			}
			head := &Head{Method: c.method, Path: c.path, Header: get(c.header), Query: get(c.query)}
			if got := nameOf(p.find(head)); got != c.want {
				t.Errorf("goes to %q, want %q", got, c.want)
			}
		})
	}
}

func TestNormalPathRefusesWhatIsAmbiguous(t *testing.T) {
	for _, c := range []struct {
		escaped, want string
		ok            bool
	}{
		{"/a/b", "/a/b", true},
		{"/a%20b", "/a b", true},
		{"/a%2Fb", "/a%2Fb", true},
		{"/a%2fb%20", "/a%2Fb ", true},
		{"/a/../b", "", false},
		{"/a/%2e%2e/b", "", false},
		{"/a/.", "", false},
		{"/a/..b", "/a/..b", true},
		{"/a%00", "", false},
		{"/a%zz", "", false},
		{"a", "", false},
	} {
		got, ok := NormalPath(c.escaped)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("NormalPath(%q) = %q, %v, want %q, %v", c.escaped, got, ok, c.want, c.ok)
		}
	}
}

func TestRewriteReplacesTheMatchedPrefix(t *testing.T) {
	for _, c := range []struct{ kind, match, replacement, path, want string }{
		{"Prefix", "/a", "/b", "/a/c", "/b/c"},
		{"Prefix", "/a", "/", "/a", "/"},
		{"Prefix", "/a", "/", "/a/c", "/c"},
		{"Prefix", "/", "/b", "/c", "/b/c"},
		{"Prefix", "/a", "/b", "/a/x%2Fy z", "/b/x%2Fy%20z"},
		{"Exact", "/a", "/b", "/a", "/b"},
	} {
		var target url.URL
		m := Match{PathKind: PathKind(c.kind), Path: c.match}
		m.rewritePath(c.replacement, c.path, &target)
		if got := target.EscapedPath(); got != c.want {
			t.Errorf("%s %s to %s: %s becomes %s, want %s", c.kind, c.match, c.replacement, c.path, got, c.want)
		}
	}
}

// FuzzRouting holds the tables equal to a plain search through all routes.
func FuzzRouting(f *testing.F) {
	f.Add("a.example.com", "/a/b", "*.example.com /a P\na.example.com /a/b E\n /  P")
	f.Add("x", "/", " / P\nx /x P")
	f.Add("b.a.example.com", "/a/b/", "**.example.com /a/b/ P\n*.a.example.com /a/b E")
	f.Fuzz(func(t *testing.T, host, path, text string) {
		host = NormalHost(host)
		path, ok := NormalPath(path)
		if !ok {
			return
		}
		var routes []oracleRoute
		l := &listener{hosts: newHosts[*paths]()}
		byHost := map[string]*paths{}
		for line := range strings.SplitSeq(text, "\n") {
			parts := strings.Split(line, " ")
			if len(parts) != 3 || !strings.HasPrefix(parts[1], "/") {
				return
			}
			r := oracleRoute{host: strings.ToLower(parts[0]), path: parts[1], isExact: parts[2] == "E"}
			if checkPattern(r.host) != nil || !isNormal(r.host) {
				return
			}
			kind := Prefix
			if r.isExact {
				kind = Exact
			}
			r.route = &route{name: line, match: Match{Path: r.path, PathKind: kind}}
			routes = append(routes, r)
			if byHost[r.host] == nil {
				byHost[r.host] = newPaths()
				l.hosts.put(r.host, byHost[r.host])
			}
			byHost[r.host].put(r.route)
		}
		head := &Head{Host: host, Path: path}
		if got, want := l.find(head), oracle(routes, host, path); got != want {
			t.Errorf("%s%s goes to %q, the oracle says %q", host, path, nameOf(got), nameOf(want))
		}
	})
}

func isNormal(pattern string) bool {
	rest := strings.TrimLeft(pattern, "*")
	return rest == pattern || strings.Trim(rest, ".") != ""
}

type oracleRoute struct {
	host, path string
	isExact    bool
	route      *route
}

// oracle finds the best route by comparing all that match.
func oracle(routes []oracleRoute, host, path string) *route {
	var best *oracleRoute
	for i := range routes {
		r := &routes[i]
		if !oracleHost(r.host, host) || !oraclePath(r, path) {
			continue
		}
		if best == nil || oracleBetter(r, best) {
			best = r
		}
	}
	if best == nil {
		return nil
	}
	return best.route
}

func oracleHost(pattern, host string) bool {
	switch {
	case pattern == "":
		return true
	case strings.HasPrefix(pattern, "**."):
		suffix := pattern[2:]
		return len(host) > len(suffix) && strings.HasSuffix(host, suffix)
	case strings.HasPrefix(pattern, "*."):
		label, parent, found := strings.Cut(host, ".")
		return found && label != "" && parent == pattern[2:]
	}
	return pattern == host
}

func oraclePath(r *oracleRoute, path string) bool {
	if r.isExact {
		return r.path == path
	}
	prefix := strings.Split(strings.TrimRight(r.path, "/"), "/")
	elements := strings.Split(path, "/")
	if len(elements) < len(prefix) {
		return false
	}
	for i := range prefix {
		if prefix[i] != elements[i] {
			return false
		}
	}
	return true
}

// oracleBetter orders by host kind and length, then exact, then path length.
func oracleBetter(a, b *oracleRoute) bool {
	if a.host != b.host {
		return oracleRank(a.host) > oracleRank(b.host)
	}
	if a.isExact != b.isExact {
		return a.isExact
	}
	return len(strings.TrimRight(a.path, "/")) > len(strings.TrimRight(b.path, "/"))
}

func oracleRank(pattern string) int {
	const exact = 1 << 20
	switch {
	case pattern == "":
		return 0
	case strings.HasPrefix(pattern, "**."):
		return 2*len(pattern[3:]) + 1
	case strings.HasPrefix(pattern, "*."):
		return 2*len(pattern[2:]) + 2
	}
	return exact
}
