package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// inProcess carries requests of clients in this process to the server's
// handler, past sockets, TLS and HTTP/2, which would cost more than most
// requests themselves.
//
// A watch has a goroutine of its own and a buffer for its reader, and goes through
// all filters that any request goes through. Every other request is
// answered on the caller's goroutine, and its response is whole when RoundTrip
// returns; its filters are those of localChain.
type inProcess struct {
	// full answers requests that have no end of their own, local all others.
	full, local http.Handler
	// limit is how long a request of local may take.
	limit time.Duration
	// ready is closed when the handler may be called.
	ready <-chan struct{}
}

var (
	errNotServing = errors.New("the API server in this process does not serve yet")
	errAborted    = errors.New("the API server aborted the request")
	errUpgrade    = errors.New("clients in the API server's process cannot upgrade connections")
)

// RoundTrip implements http.RoundTripper.
func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer r.Body.Close()
	}
	select {
	case <-p.ready:
	default:
		return nil, errNotServing
	}
	if r.Header.Get("Upgrade") != "" {
		return nil, errUpgrade
	}
	if isEndless(r) {
		ctx, cancel := detach(r.Context(), 0)
		return p.watch(ctx, cancel, r)
	}
	ctx, cancel := detach(r.Context(), p.limit)
	defer cancel()
	w := &response{header: http.Header{}, body: &bytes.Buffer{}}
	if err := serve(p.local, w, incoming(ctx, r)); err != nil {
		return nil, err
	}
	w.answered.Store(true)
	body := w.body.(*bytes.Buffer)
	answer := w.answer(r, io.NopCloser(body))
	answer.ContentLength = int64(body.Len())
	return answer, nil
}

// watch returns when the handler has begun its answer. The server ends watches
// whose buffers are full, which on a busy machine are full before a
// goroutine has had its turn; one that has brought nothing yet is begun again
// from where it was, since its reader would take that for a fault and list
// everything anew after a pause.
func (p inProcess) watch(ctx context.Context, cancel context.CancelFunc, r *http.Request) (*http.Response, error) {
	s := newStream(cancel)
	w := &response{header: http.Header{}, body: s, begun: make(chan struct{})}
	go func() {
		defer cancel()
		begin := time.Now()
		err := serve(p.full, w, incoming(ctx, r))
		for last := w; err == nil && last.status == http.StatusOK && isWatch(r) && !s.isUsed() && time.Since(begin) < emptyWatch; {
			select {
			case <-ctx.Done():
			case <-time.After(againAfter):
			}
			if err = ctx.Err(); err == nil {
				last = &response{header: http.Header{}, body: s, continues: true}
				err = serve(p.full, last, incoming(ctx, r))
			}
		}
		s.end(err)
		w.begin(http.StatusOK)
	}()
	select {
	case <-w.begun:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	answer := w.answer(r, s)
	answer.ContentLength = -1
	return answer, nil
}

// emptyWatch is how long it takes from the begin of a watch until its end is
// told to its reader although nothing came; client-go finds a watch that is as
// short as this faulty.
const emptyWatch = time.Second

// againAfter keeps a server that is about to stop from being asked in a loop.
const againAfter = 5 * time.Millisecond

// detach returns a context that ends with ctx but has none of its values: a
// client may be called while another request is served, and the server keeps
// what it knows of a request there. It ends after limit, unless that is 0.
func detach(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	inner, cancel := context.WithCancelCause(context.Background())
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	release := func() {}
	deadline, ok := ctx.Deadline()
	if end := time.Now().Add(limit); limit > 0 && (!ok || end.Before(deadline)) {
		deadline, ok = end, true
	}
	if ok {
		inner, release = context.WithDeadline(inner, deadline)
	}
	return inner, func() {
		stop()
		release()
		cancel(context.Canceled)
	}
}

// isEndless reports whether the answer to r has no end of its own: a watch,
// or a log that is followed.
func isEndless(r *http.Request) bool {
	return isWatch(r) || asks(r, "follow")
}

func isWatch(r *http.Request) bool { return asks(r, "watch") }

// asks reports whether the query of r says yes to name.
func asks(r *http.Request, name string) bool {
	if r.Method != http.MethodGet || r.URL.RawQuery == "" {
		return false
	}
	yes, err := strconv.ParseBool(r.URL.Query().Get(name))
	return err == nil && yes
}

// incoming is r as a server would have read it.
func incoming(ctx context.Context, r *http.Request) *http.Request {
	in := r.Clone(ctx)
	in.RequestURI = r.URL.RequestURI()
	in.RemoteAddr = "127.0.0.1:0"
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/2.0", 2, 0
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	return in
}

// serve calls the handler; http.ErrAbortHandler, with which handlers break a
// connection, and other panics become errors.
func serve(handler http.Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			err = errAborted
		default:
			err = fmt.Errorf("the API server panicked: %v", p)
		}
	}()
	handler.ServeHTTP(w, r)
	return nil
}

// response is what a handler writes to.
type response struct {
	header http.Header
	body   io.Writer
	once   sync.Once
	status int
	sent   http.Header
	begun  chan struct{} // nil if nobody waits for it
	// answered says that the handler has returned.
	answered atomic.Bool
	// continues says that the reader had its status already, of success.
	continues bool
}

// Header implements http.ResponseWriter. What a handler's goroutine that was
// not waited for adds to an answered request, like a warning, is dropped.
func (w *response) Header() http.Header {
	if w.answered.Load() {
		return http.Header{}
	}
	return w.header
}

func (w *response) WriteHeader(status int) {
	if status >= 200 { // informational ones may precede the real one
		w.begin(status)
	}
}

func (w *response) begin(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header
		if w.begun != nil {
			// The handler may go on changing its own.
			w.sent = w.header.Clone()
			close(w.begun)
		}
	})
}

func (w *response) Write(data []byte) (int, error) {
	w.begin(http.StatusOK)
	if w.continues && w.status != http.StatusOK {
		return len(data), nil // the end of the stream must do
	}
	return w.body.Write(data)
}

// Flush implements http.Flusher.
func (w *response) Flush() {
	w.begin(http.StatusOK)
	if s, ok := w.body.(*stream); ok {
		s.flush()
	}
}

// CloseNotify implements http.CloseNotifier, without which the server's
// filters hide Flush. Handlers look at the request's context instead.
func (w *response) CloseNotify() <-chan bool { return nil }

func (w *response) answer(r *http.Request, body io.ReadCloser) *http.Response {
	w.begin(http.StatusOK)
	return &http.Response{
		Status:     strconv.Itoa(w.status) + " " + http.StatusText(w.status),
		StatusCode: w.status,
		Proto:      "HTTP/2.0",
		ProtoMajor: 2,
		Header:     w.sent,
		Body:       body,
		Request:    r,
	}
}

// streamLimit is how many bytes a reader may be behind before the writer
// waits. The server ends watches that wait for long.
const streamLimit = 1 << 20

// stream is the body of a watch. What is written can be read once it is
// flushed, so that a reader wakes up once for several events.
type stream struct {
	mu      sync.Mutex
	changed sync.Cond
	data    bytes.Buffer
	flushed int // bytes at the head of data that may be read
	used    bool
	err     error
	ended   bool
	cancel  context.CancelFunc
}

func newStream(cancel context.CancelFunc) *stream {
	s := &stream{cancel: cancel}
	s.changed.L = &s.mu
	return s
}

// Write implements io.Writer.
func (s *stream) Write(data []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.data.Len() > streamLimit && !s.ended {
		s.publish()
		s.changed.Wait()
	}
	if s.ended {
		return 0, io.ErrClosedPipe
	}
	s.used = true
	return s.data.Write(data)
}

// isUsed reports whether anything has been written.
func (s *stream) isUsed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

func (s *stream) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publish()
}

// publish lets the reader have all there is.
func (s *stream) publish() {
	s.flushed = s.data.Len()
	s.changed.Broadcast()
}

// end ends the stream; the reader gets what is left, then err, or io.EOF for nil.
func (s *stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended, s.err = true, err
	if err == nil {
		s.err = io.EOF
	}
	s.publish()
}

// Read implements io.Reader.
func (s *stream) Read(data []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.flushed == 0 && !s.ended {
		s.changed.Wait()
	}
	if s.flushed == 0 {
		return 0, s.err
	}
	n, _ := s.data.Read(data[:min(len(data), s.flushed)]) // a buffer that holds that much: no error
	s.flushed -= n
	s.changed.Broadcast()
	return n, nil
}

// Close ends the request.
func (s *stream) Close() error {
	s.cancel()
	s.end(http.ErrBodyReadAfterClose)
	return nil
}
