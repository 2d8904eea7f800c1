// Package l7 is the one HTTP proxy engine of the agent. It knows nothing of
// Kubernetes: ingress, gateway and mesh compile their objects into a Config,
// and Server.Apply makes the engine do exactly that.
//
//	Config ──compile──► snapshot ──atomic swap──► requests
//	                      │
//	listener → SNI → host → path → method, header, query → filters → cluster → endpoint
//
// A snapshot never changes once it serves. A change of Config drops no
// connection: sockets, connections and upstream pools live outside snapshots,
// requests under way finish on what they began with.
//
// What is decided here (this file, match.go, route.go) does not know
// net/http. What carries a request out is an Exchange; engine.go and
// forward.go implement it on net/http.
package l7

import "time"

// Config is everything the engine should do: a plain value.
type Config struct {
	Listeners []Listener
	Clusters  []Cluster
}

// Protocol is what a listener speaks.
type Protocol string

// The protocols of listeners. Both speak HTTP/1.1 and HTTP/2: HTTPS chooses
// by ALPN, HTTP by the client's preface (RFC 9113 §3.3, prior knowledge).
const (
	HTTP  Protocol = "HTTP"
	HTTPS Protocol = "HTTPS"
)

// Listener is one listening socket and what it serves.
type Listener struct {
	// Name labels metrics.
	Name string
	// Address is host:port as net.Listen takes it; an empty host is every
	// address of both families. No two listeners share one.
	Address  string
	Protocol Protocol
	// Certificates choose a certificate by the server name that the client
	// asks for. Only HTTPS has them.
	Certificates []ServerName
	// DefaultCertificate answers clients that ask for no name or an unknown
	// one, so that they see an HTTP status instead of a broken handshake.
	DefaultCertificate string
	// Hosts are tried from the most specific to the least; the first with a
	// matching route wins. If none has one, the most specific host with a
	// Default answers.
	Hosts []Host
}

// ServerName binds a host pattern to a certificate by its name, which
// Options.Certificates resolves during the handshake.
type ServerName struct {
	Host        string
	Certificate string
}

// Host is the routes of one host pattern.
type Host struct {
	// Pattern is an exact name, *.name for exactly one more label (Ingress),
	// **.name for one or more (Gateway API), or empty for every host.
	Pattern string
	Routes  []Route
	// Default answers when no route of any matching host does.
	Default *Route
}

// PathKind is how a route's path is compared.
type PathKind string

// The kinds of paths.
const (
	// Exact is byte for byte.
	Exact PathKind = "Exact"
	// Prefix is element by element: /a/b matches /a/b, /a/b/ and /a/b/c but
	// not /a/bc. A trailing slash does not matter.
	Prefix PathKind = "Prefix"
)

// Match is what a request must have. Among routes of one host, Exact beats
// Prefix, a longer Prefix a shorter one; then a method, more headers and more
// query parameters win, and of equals the first.
type Match struct {
	Path     string
	PathKind PathKind
	// Method is empty for every method.
	Method  string
	Headers []Field
	Query   []Field
}

// Field is a header or query parameter with its exact value.
type Field struct {
	Name, Value string
}

// Route says what happens to the requests that match.
type Route struct {
	// Name labels metrics, so there must not be one per path or pod.
	Name  string
	Match Match
	// Redirect answers by itself; else Backends do.
	Redirect *Redirect
	Request  HeaderEdit
	Response HeaderEdit
	Rewrite  Rewrite
	// Backends share the requests by weight. A route without any answers 503.
	Backends []Backend
	// Timeout limits the time to the end of the response; 0 is no limit.
	Timeout time.Duration
	// Retries is how many further endpoints are tried when a request was not
	// sent at all, or is idempotent and got no response.
	Retries int
}

// Redirect answers with a Location built from the request.
type Redirect struct {
	// Scheme, Host and Port replace those of the request where set. Port 0 is
	// the port of the scheme.
	Scheme string
	Host   string
	Port   uint16
	// Status is a 3xx code.
	Status int
}

// HeaderEdit changes headers: Remove, then Set, then Add.
type HeaderEdit struct {
	Set, Add []Field
	Remove   []string
}

// Rewrite changes the request's target before it is forwarded.
type Rewrite struct {
	// Host replaces the Host header.
	Host string
	// Path replaces the matched prefix, or the whole path of an Exact match.
	Path string
}

// Backend is a cluster with its share of the requests.
type Backend struct {
	Cluster string
	// Weight 0 gets no requests.
	Weight int
}

// Scheme is what an endpoint speaks.
type Scheme string

// The schemes of clusters.
const (
	// PlainHTTP is HTTP/1.1 without TLS.
	PlainHTTP Scheme = "http"
	// TLS is HTTP/2 or HTTP/1.1 over TLS, by ALPN.
	TLS Scheme = "https"
	// H2C is HTTP/2 without TLS, with prior knowledge; gRPC needs it.
	H2C Scheme = "h2c"
)

// Cluster is a set of endpoints that give the same answers.
type Cluster struct {
	Name   string
	Scheme Scheme
	// ServerName is verified and sent in TLS; empty means that endpoints are
	// not verified. Roots are PEM; empty are those of the system.
	ServerName string
	Roots      string
	// Endpoints are host:port.
	Endpoints []string
	// ConnectTimeout is per endpoint; 0 means DefaultConnectTimeout.
	ConnectTimeout time.Duration
	// ResponseTimeout limits the wait for the response's headers; 0 is no
	// limit.
	ResponseTimeout time.Duration
}

// DefaultConnectTimeout survives one lost SYN (Linux repeats it after 1 s).
const DefaultConnectTimeout = 3 * time.Second
