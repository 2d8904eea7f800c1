package l7

import (
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// ServeHTTP routes one request: the entry from net/http.
func (k *socket) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	start := time.Now()
	answer := &answer{ResponseWriter: w}
	l := k.listener()
	if l == nil || (l.config.Protocol == HTTPS) != (request.TLS != nil) {
		// The listener went away or changed its protocol under this connection.
		w.Header().Set("Connection", "close")
		http.Error(answer, "the listener has changed, connect again", http.StatusMisdirectedRequest)
		return
	}
	ex := &httpExchange{server: k.server, request: request, answer: answer}
	defer func() {
		took := time.Since(start)
		if ex.route != nil {
			ex.route.metrics.observe(answer.status, took)
		}
		k.server.logAccess(l, ex.route, request, answer.status, took)
	}()
	l.serve(ex)
}

func (s *Server) logAccess(l *listener, r *route, request *http.Request, status int, took time.Duration) {
	if !s.options.Log.Enabled(request.Context(), slog.LevelDebug) {
		return
	}
	name := ""
	if r != nil {
		name = r.name
	}
	s.options.Log.DebugContext(request.Context(), "request",
		"listener", l.config.Name, "route", name, "method", request.Method, "host", request.Host,
		"path", request.URL.Path, "status", status, "took", took, "client", request.RemoteAddr)
}

// answer remembers the status for metrics.
type answer struct {
	http.ResponseWriter
	status int
}

// WriteHeader remembers the final status; informational ones pass through.
func (a *answer) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController flush and hijack.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// httpExchange is the Exchange of net/http.
type httpExchange struct {
	server  *Server
	request *http.Request
	answer  *answer
	route   *route
	query   url.Values
}

// Matched implements Exchange.
func (ex *httpExchange) Matched(r *route) { ex.route = r }

// Head implements Exchange.
func (ex *httpExchange) Head() (*Head, error) {
	r := ex.request
	path, ok := NormalPath(r.URL.EscapedPath())
	if !ok {
		return nil, errors.New("the path is ambiguous: resolve . and .. first")
	}
	return &Head{
		Method: r.Method,
		Host:   NormalHost(r.Host),
		Path:   path,
		Header: ex.header,
		Query:  ex.queryValue,
	}, nil
}

func (ex *httpExchange) header(name string) (string, bool) {
	values := ex.request.Header.Values(name)
	// A list split over several lines is one value (RFC 9110 §5.3).
	return strings.Join(values, ","), len(values) > 0
}

func (ex *httpExchange) queryValue(name string) (string, bool) {
	if ex.query == nil {
		ex.query = ex.request.URL.Query()
	}
	values := ex.query[name]
	if len(values) == 0 {
		return "", false
	}
	return values[0], true
}

// Reply implements Exchange.
func (ex *httpExchange) Reply(status int, text string) {
	http.Error(ex.answer, text, status)
}

// Redirect implements Exchange.
func (ex *httpExchange) Redirect(r *Redirect) {
	scheme := "http"
	if ex.request.TLS != nil {
		scheme = "https"
	}
	ex.answer.Header().Set("Location", r.location(scheme, ex.request.Host, ex.request.URL))
	ex.answer.Header().Set("Content-Length", "0")
	ex.answer.WriteHeader(r.Status)
}
