package l7

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Exchange is one request and its answer. Routing decides through it and
// does not know which engine carries it.
type Exchange interface {
	// Head returns what routing looks at; an error means a bad request.
	Head() (*Head, error)
	// Matched is called with the route, if there is one, before the answer.
	Matched(r *route)
	// Reply answers with a status and a line of text.
	Reply(status int, text string)
	// Redirect answers as r says.
	Redirect(r *Redirect)
	// Forward sends the request to an endpoint of the cluster and the
	// response back.
	Forward(r *route, head *Head, cluster string)
}

// snapshot is a compiled Config. It does not change once it serves.
type snapshot struct {
	// listeners are by address.
	listeners map[string]*listener
	clusters  map[string]*cluster
}

type listener struct {
	config       Listener
	certificates hosts[string]
	hosts        hosts[*paths]
	// routes are all of them, in no useful order.
	routes []*route
}

type route struct {
	name     string
	match    Match
	redirect *Redirect
	config   *Route
	backends []Backend
	weight   int
	metrics  *routeMetrics
}

// serve finds what ex asks for and has it done.
func (l *listener) serve(ex Exchange) {
	head, err := ex.Head()
	if err != nil {
		ex.Reply(400, err.Error())
		return
	}
	r := l.find(head)
	if r == nil {
		ex.Reply(404, "no route for this host and path")
		return
	}
	ex.Matched(r)
	switch {
	case r.redirect != nil:
		ex.Redirect(r.redirect)
	case r.weight == 0:
		ex.Reply(503, "the route has no backend")
	default:
		ex.Forward(r, head, r.pick(rand.IntN(r.weight)))
	}
}

func (l *listener) find(head *Head) *route {
	var fallback *route
	for p := range l.hosts.matching(head.Host) {
		if r := p.find(head); r != nil {
			return r
		}
		if fallback == nil {
			fallback = p.fallback
		}
	}
	return fallback
}

// pick returns the cluster whose share of the weights holds ticket, which is
// in [0, r.weight).
func (r *route) pick(ticket int) string {
	for _, backend := range r.backends {
		if ticket < backend.Weight {
			return backend.Cluster
		}
		ticket -= backend.Weight
	}
	panic("l7: ticket beyond the weights of route " + r.name)
}

// location returns where a redirected request for target should go.
func (r *Redirect) location(scheme, authority string, target *url.URL) string {
	to := url.URL{Scheme: scheme, Host: authority, Path: target.Path, RawPath: target.RawPath, RawQuery: target.RawQuery}
	if r.Scheme != "" {
		to.Scheme = r.Scheme
	}
	host, port := splitPort(authority)
	if r.Scheme != "" || r.Port != 0 {
		port = ""
	}
	if r.Port != 0 && r.Port != defaultPort(to.Scheme) {
		port = strconv.Itoa(int(r.Port))
	}
	if r.Host != "" {
		host = r.Host
	}
	to.Host = host
	if port != "" {
		to.Host = net.JoinHostPort(strings.Trim(host, "[]"), port)
	}
	return to.String()
}

func splitPort(authority string) (host, port string) {
	if h, p, err := net.SplitHostPort(authority); err == nil {
		if strings.Contains(h, ":") {
			h = "[" + h + "]"
		}
		return h, p
	}
	return authority, ""
}

func defaultPort(scheme string) uint16 {
	if scheme == "https" {
		return 443
	}
	return 80
}

// compile checks c and builds its routing tables, without metrics and pools.
// The error names every field that is wrong.
func compile(c Config) (*snapshot, error) {
	s := &snapshot{listeners: map[string]*listener{}, clusters: map[string]*cluster{}}
	var errs []error
	for _, cl := range c.Clusters {
		if s.clusters[cl.Name] != nil {
			errs = append(errs, fmt.Errorf("cluster %s: defined twice", cl.Name))
		}
		compiled, err := newCluster(cl)
		if err != nil {
			errs = append(errs, fmt.Errorf("cluster %s: %w", cl.Name, err))
		}
		s.clusters[cl.Name] = compiled
	}
	for _, ln := range c.Listeners {
		if s.listeners[ln.Address] != nil {
			errs = append(errs, fmt.Errorf("listener %s: address %s is taken", ln.Name, ln.Address))
		}
		compiled, err := s.compileListener(ln)
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %s: %w", ln.Name, err))
		}
		s.listeners[ln.Address] = compiled
	}
	return s, errors.Join(errs...)
}

func (s *snapshot) compileListener(ln Listener) (*listener, error) {
	l := &listener{config: ln, certificates: newHosts[string](), hosts: newHosts[*paths]()}
	var errs []error
	if ln.Protocol != HTTP && ln.Protocol != HTTPS {
		errs = append(errs, fmt.Errorf("protocol %q is neither %s nor %s", ln.Protocol, HTTP, HTTPS))
	}
	for _, name := range ln.Certificates {
		errs = append(errs, checkPattern(name.Host))
		l.certificates.put(name.Host, name.Certificate)
	}
	seen := map[string]bool{}
	for _, host := range ln.Hosts {
		if pattern := strings.ToLower(host.Pattern); seen[pattern] {
			errs = append(errs, fmt.Errorf("host %q: defined twice", host.Pattern))
		} else {
			seen[pattern] = true
		}
		p, err := s.compileHost(host, l)
		errs = append(errs, checkPattern(host.Pattern), err)
		l.hosts.put(host.Pattern, p)
	}
	return l, errors.Join(errs...)
}

func (s *snapshot) compileHost(host Host, l *listener) (*paths, error) {
	p := newPaths()
	var errs []error
	for i := range host.Routes {
		r, err := s.compileRoute(&host.Routes[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("host %q, route %s, path %s: %w", host.Pattern, host.Routes[i].Name, host.Routes[i].Match.Path, err))
		}
		p.put(r)
		l.routes = append(l.routes, r)
	}
	p.sort()
	if host.Default != nil {
		config := *host.Default
		config.Match = Match{Path: "/", PathKind: Prefix}
		r, err := s.compileRoute(&config)
		if err != nil {
			errs = append(errs, fmt.Errorf("host %q, default route %s: %w", host.Pattern, host.Default.Name, err))
		}
		p.fallback = r
		l.routes = append(l.routes, r)
	}
	return p, errors.Join(errs...)
}

func (s *snapshot) compileRoute(config *Route) (*route, error) {
	r := &route{name: config.Name, match: config.Match, redirect: config.Redirect, config: config}
	var errs []error
	if config.Match.PathKind != Exact && config.Match.PathKind != Prefix {
		errs = append(errs, fmt.Errorf("path kind %q is neither %s nor %s", config.Match.PathKind, Exact, Prefix))
	}
	if !strings.HasPrefix(config.Match.Path, "/") {
		errs = append(errs, errors.New("the path does not begin with /"))
	}
	if config.Redirect != nil && (config.Redirect.Status < 300 || config.Redirect.Status > 399) {
		errs = append(errs, fmt.Errorf("redirect status %d is not 3xx", config.Redirect.Status))
	}
	for _, backend := range config.Backends {
		if s.clusters[backend.Cluster] == nil {
			errs = append(errs, fmt.Errorf("there is no cluster %s", backend.Cluster))
		}
		if backend.Weight < 0 {
			errs = append(errs, fmt.Errorf("cluster %s: weight %d is negative", backend.Cluster, backend.Weight))
		}
		if backend.Weight > 0 {
			r.backends = append(r.backends, backend)
			r.weight += backend.Weight
		}
	}
	errs = append(errs, checkEdit(config.Request), checkEdit(config.Response))
	return r, errors.Join(errs...)
}

func checkEdit(edit HeaderEdit) error {
	for _, fields := range [][]Field{edit.Set, edit.Add} {
		for _, f := range fields {
			if !httpguts.ValidHeaderFieldName(f.Name) || !httpguts.ValidHeaderFieldValue(f.Value) {
				return fmt.Errorf("header %q: %q is not valid", f.Name, f.Value)
			}
		}
	}
	return nil
}

// checkPattern accepts what Host.Pattern describes.
func checkPattern(pattern string) error {
	name := strings.TrimPrefix(strings.TrimPrefix(pattern, "*"), "*")
	if name != pattern && !strings.HasPrefix(name, ".") || strings.Contains(name, "*") || name == "." {
		return fmt.Errorf("host %q: a wildcard is *.name or **.name", pattern)
	}
	return nil
}
