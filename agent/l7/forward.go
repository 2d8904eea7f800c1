package l7

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errNoEndpoints     = errors.New("no endpoint is ready")
	errResponseTimeout = errors.New("the endpoint did not answer in time")
	errRouteTimeout    = errors.New("the request took longer than its route allows")
)

// statusClientGone is recorded, never sent: the client left before an answer.
const statusClientGone = 499

// forwarding carries one request to an endpoint, a second one if need be. It
// is the http.RoundTripper under httputil.ReverseProxy, which removes
// hop-by-hop headers and passes on bodies, trailers and upgrades.
type forwarding struct {
	ex      *httpExchange
	route   *route
	head    *Head
	cluster string
}

// Forward implements Exchange.
func (ex *httpExchange) Forward(r *route, head *Head, cluster string) {
	f := &forwarding{ex: ex, route: r, head: head, cluster: cluster}
	request := ex.request
	if r.config.Timeout > 0 {
		ctx, cancel := context.WithTimeoutCause(request.Context(), r.config.Timeout, errRouteTimeout)
		defer cancel()
		request = request.WithContext(ctx)
	}
	// Else net/http swallows what is left of an HTTP/1.1 request's body when
	// the response begins. HTTP/2 is always full duplex and says so with an error.
	_ = http.NewResponseController(ex.answer).EnableFullDuplex()
	proxy := httputil.ReverseProxy{
		Rewrite:        f.rewrite,
		Transport:      f,
		ModifyResponse: f.editResponse,
		ErrorHandler:   f.fail,
		BufferPool:     copyBuffers,
		ErrorLog:       slog.NewLogLogger(ex.server.options.Log.Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(ex.answer, request)
}

// rewrite makes the outgoing request. What clients claim in Forwarded and
// X-Forwarded-* is not passed on: ReverseProxy has removed it from pr.Out.
func (f *forwarding) rewrite(pr *httputil.ProxyRequest) {
	pr.SetXForwarded()
	pr.Out.Host = pr.In.Host
	if host := f.route.config.Rewrite.Host; host != "" {
		pr.Out.Host = host
	}
	if path := f.route.config.Rewrite.Path; path != "" {
		f.route.match.rewritePath(path, f.head.Path, pr.Out.URL)
	}
	// Unparsable parameters are the endpoint's to judge, not ours to drop.
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	f.route.config.Request.apply(pr.Out.Header)
}

// rewritePath replaces what m matched of path.
func (m *Match) rewritePath(replacement, path string, target *url.URL) {
	if m.PathKind == Prefix {
		rest := strings.TrimPrefix(path, strings.TrimRight(m.Path, "/"))
		replacement = strings.TrimRight(replacement, "/") + rest
		if replacement == "" {
			replacement = "/"
		}
	}
	// Of the escapes only %2F is left in a normal path.
	target.Path = strings.ReplaceAll(replacement, "%2F", "/")
	target.RawPath = ""
	if target.Path != replacement {
		escaped := url.URL{Path: replacement}
		target.RawPath = strings.ReplaceAll(escaped.EscapedPath(), "%252F", "%2F")
	}
}

func (f *forwarding) editResponse(response *http.Response) error {
	f.route.config.Response.apply(response.Header)
	return nil
}

func (e *HeaderEdit) apply(header http.Header) {
	for _, name := range e.Remove {
		header.Del(name)
	}
	for _, field := range e.Set {
		header.Set(field.Name, field.Value)
	}
	for _, field := range e.Add {
		header.Add(field.Name, field.Value)
	}
}

// RoundTrip tries endpoints until one answers, the retries are used up, or a
// request was sent that must not be sent twice.
func (f *forwarding) RoundTrip(request *http.Request) (*http.Response, error) {
	var tried []*pool
	err := errNoEndpoints
	for {
		p := f.pick(tried)
		if p == nil {
			return nil, err
		}
		response, attemptErr, mayRepeat := f.attempt(p, request)
		if attemptErr == nil {
			return response, nil
		}
		err = attemptErr
		tried = append(tried, p)
		if !mayRepeat || len(tried) > f.route.config.Retries || request.Context().Err() != nil {
			return nil, err
		}
	}
}

// pick asks the newest snapshot, so that an endpoint which is gone is not
// tried by a request that began before.
func (f *forwarding) pick(tried []*pool) *pool {
	c := f.ex.server.current.Load().clusters[f.cluster]
	if c == nil {
		return nil
	}
	return c.pick(tried, time.Now())
}

// attempt sends request to p. mayRepeat is whether it is safe to send it
// elsewhere: nothing was sent, or it is idempotent (RFC 9110 §9.2.2), and
// none of the body is consumed.
func (f *forwarding) attempt(p *pool, request *http.Request) (response *http.Response, err error, mayRepeat bool) {
	config := f.ex.server.current.Load().clusters[f.cluster]
	ctx, cancel := context.WithCancelCause(request.Context())
	sent := &sentTrace{}
	out := request.WithContext(httptrace.WithClientTrace(ctx, sent.trace()))
	target := *request.URL
	target.Host = p.key.address
	target.Scheme = "http"
	if p.key.scheme == TLS {
		target.Scheme = "https"
	}
	out.URL = &target
	body := &attemptBody{inner: request.Body}
	if request.Body != nil {
		out.Body = body
	}
	if config != nil && config.config.ResponseTimeout > 0 {
		timer := time.AfterFunc(config.config.ResponseTimeout, func() { cancel(errResponseTimeout) })
		defer timer.Stop()
	}

	p.acquire()
	response, err = p.transport.RoundTrip(out)
	if err != nil {
		p.release()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		if !sent.isConnected.Load() && request.Context().Err() == nil {
			p.rest(time.Now())
		}
		unread := body.detach()
		isTimeout := errors.Is(err, errResponseTimeout)
		return nil, err, unread && !isTimeout && (!sent.wasWritten() || isIdempotent(request.Method))
	}
	response.Body = newTrackedBody(response.Body, func() {
		cancel(nil)
		p.release()
	})
	return response, nil, false
}

func isIdempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// fail answers a request that got no response.
func (f *forwarding) fail(_ http.ResponseWriter, request *http.Request, err error) {
	status := http.StatusBadGateway
	var netErr net.Error
	switch {
	case f.ex.request.Context().Err() != nil:
		f.ex.answer.status = statusClientGone
		return
	case errors.Is(err, errNoEndpoints):
		status = http.StatusServiceUnavailable
	case errors.Is(err, errRouteTimeout), errors.Is(err, errResponseTimeout),
		errors.Is(context.Cause(request.Context()), errRouteTimeout),
		errors.As(err, &netErr) && netErr.Timeout():
		status = http.StatusGatewayTimeout
	}
	f.ex.server.options.Log.DebugContext(request.Context(), "no response from upstream",
		"cluster", f.cluster, "route", f.route.name, "error", err)
	f.ex.Reply(status, statusText(status))
}

// statusText says no more than clients should know: not the endpoint.
func statusText(status int) string {
	switch status {
	case http.StatusServiceUnavailable:
		return "no endpoint is ready"
	case http.StatusGatewayTimeout:
		return "the endpoint did not answer in time"
	default:
		return "the endpoint could not be reached"
	}
}

// sentTrace observes whether any byte of a request left.
type sentTrace struct {
	isConnected atomic.Bool
	// conn is set when writes can be counted: HTTP/1.1 without TLS.
	conn         *countedConn
	before       int64
	wroteHeaders atomic.Bool
}

func (t *sentTrace) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if conn, ok := info.Conn.(*countedConn); ok {
				t.conn, t.before = conn, conn.written.Load()
			}
			t.wroteHeaders.Store(false)
			t.isConnected.Store(true)
		},
		WroteHeaders: func() { t.wroteHeaders.Store(true) },
	}
}

func (t *sentTrace) wasWritten() bool {
	if !t.isConnected.Load() {
		return false
	}
	if t.conn != nil && t.conn.written.Load() == t.before {
		return false
	}
	return t.conn != nil || t.wroteHeaders.Load()
}

// attemptBody is the request's body as one attempt sees it. The transport
// may still hold it after a failed attempt, hence detach.
type attemptBody struct {
	inner io.Reader

	mu         sync.Mutex
	isRead     bool
	isDetached bool
}

func (b *attemptBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.isDetached {
		b.mu.Unlock()
		return 0, io.ErrClosedPipe
	}
	b.isRead = true
	b.mu.Unlock()
	return b.inner.Read(p)
}

// Close leaves the client's body open; net/http closes it after the answer.
func (b *attemptBody) Close() error { return nil }

// detach ends reading and reports whether there was none.
func (b *attemptBody) detach() (unread bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.isDetached = true
	return !b.isRead
}

// newTrackedBody returns body with done called once, when it is closed. The
// body of an upgraded connection stays writable.
func newTrackedBody(body io.ReadCloser, done func()) io.ReadCloser {
	t := trackedBody{ReadCloser: body, done: sync.OnceFunc(done)}
	if writable, ok := body.(io.ReadWriteCloser); ok {
		return struct {
			trackedBody
			io.Writer
		}{t, writable}
	}
	return t
}

type trackedBody struct {
	io.ReadCloser
	done func()
}

func (t trackedBody) Close() error {
	defer t.done()
	return t.ReadCloser.Close()
}

// copyBuffers are the buffers that bodies are copied through.
var copyBuffers = &bufferPool{sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}}

type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) Get() []byte  { return *p.pool.Get().(*[]byte) }
func (p *bufferPool) Put(b []byte) { p.pool.Put(&b) }
