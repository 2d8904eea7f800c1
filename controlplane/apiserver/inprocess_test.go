package apiserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func ready() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// limit is how long a request may take; longer than any test's.
const limit = 2 * time.Hour

// ask sends a request to a handler in this process.
func ask(t *testing.T, ctx context.Context, handler http.HandlerFunc, method, path, body string) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, "https://localhost:6443"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return inProcess{full: handler, local: handler, limit: limit, ready: ready()}.RoundTrip(r)
}

func TestARequestReachesTheHandlerAsOverTheNetwork(t *testing.T) {
	response, err := ask(t, t.Context(), func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != "POST" || r.RequestURI != "/api/v1/pods?dryRun=All" || r.Host != "localhost:6443" || string(body) != "a pod" {
			t.Errorf("got %s %s for host %q with %q", r.Method, r.RequestURI, r.Host, body)
		}
		w.Header().Set("Content-Type", "text/plain")
		w.WriteHeader(http.StatusCreated)
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "made")
	}, "POST", "/api/v1/pods?dryRun=All", "a pod")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || string(body) != "made" || response.StatusCode != 201 || response.ContentLength != 4 || response.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("got %q of %d bytes, %v, %v, %v", body, response.ContentLength, response.Status, response.Header, err)
	}
}

func TestRequestsThatCannotBeAnswered(t *testing.T) {
	aborts := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	panics := func(http.ResponseWriter, *http.Request) { panic("no") }
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		path    string
		want    string
	}{
		{"the handler breaks the connection", aborts, "/", errAborted.Error()},
		{"the handler panics", panics, "/", "the API server panicked: no"},
		{"the handler of a watch breaks the connection", aborts, "/?watch=1", errAborted.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			response, err := ask(t, t.Context(), c.handler, "GET", c.path, "")
			if err == nil {
				_, err = io.ReadAll(response.Body)
			}
			if err == nil || err.Error() != c.want {
				t.Errorf("got error %v, want %s", err, c.want)
			}
		})
	}
	r, err := http.NewRequest("GET", "https://localhost/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (inProcess{ready: make(chan struct{})}).RoundTrip(r); !errors.Is(err, errNotServing) {
		t.Errorf("before the server serves: got error %v", err)
	}
	r.Header.Set("Upgrade", "websocket")
	if _, err := (inProcess{ready: ready()}).RoundTrip(r); !errors.Is(err, errUpgrade) {
		t.Errorf("an upgrade: got error %v", err)
	}
}

func TestTheHandlerKnowsTheCallersTimeButNotItsValues(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "of another request"), time.Hour)
	defer cancel()
	_, err := ask(t, ctx, func(_ http.ResponseWriter, r *http.Request) {
		want, _ := ctx.Deadline()
		if got, ok := r.Context().Deadline(); !ok || !got.Equal(want) {
			t.Errorf("the deadline is %v, not %v", got, want)
		}
		if v := r.Context().Value(key{}); v != nil {
			t.Errorf("the handler sees %v", v)
		}
		cancel()
		<-r.Context().Done()
	}, "GET", "/", "")
	if err != nil {
		t.Error(err)
	}
}

func TestRequestsHaveALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		_, err := ask(t, t.Context(), func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "GET", "/", "")
		if took := time.Since(begin); err != nil || took != limit {
			t.Errorf("a request took %s, %v", took, err)
		}
	})
}

func TestAWarningAfterTheAnswerIsDropped(t *testing.T) {
	var writer http.ResponseWriter
	response, err := ask(t, t.Context(), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Warning", "in time")
		writer = w
	}, "GET", "/", "")
	if err != nil {
		t.Fatal(err)
	}
	writer.Header().Set("Warning", "late")
	if got := response.Header.Get("Warning"); got != "in time" {
		t.Errorf("the warning is %q", got)
	}
}

func TestWatchesStreamUntilSomebodyEndsThem(t *testing.T) {
	frames := make(chan string)
	handler := func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		for {
			select {
			case frame, ok := <-frames:
				if !ok {
					return
				}
				io.WriteString(w, frame)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}
	read := func(t *testing.T, body io.Reader) string {
		t.Helper()
		data := make([]byte, 100)
		n, err := body.Read(data)
		if err != nil {
			t.Fatal(err)
		}
		return string(data[:n])
	}
	synctest.Test(t, func(t *testing.T) {
		frames = make(chan string)
		for _, path := range []string{"/api/v1/pods?watch=true", "/api/v1/namespaces/a/pods/b/log?follow=1"} {
			response, err := ask(t, t.Context(), handler, "GET", path, "")
			if err != nil {
				t.Fatal(err)
			}
			frames <- "one"
			if got := read(t, response.Body); got != "one" {
				t.Errorf("read %q", got)
			}
			response.Body.Close()
			if _, err := response.Body.Read(make([]byte, 1)); err == nil {
				t.Error("read from a closed body")
			}
		}
		// synctest fails the test if a handler goes on after its body is closed.
	})
	synctest.Test(t, func(t *testing.T) {
		frames = make(chan string)
		response, err := ask(t, t.Context(), handler, "GET", "/?watch=true", "")
		if err != nil {
			t.Fatal(err)
		}
		frames <- "last"
		close(frames)
		if body, err := io.ReadAll(response.Body); err != nil || string(body) != "last" {
			t.Errorf("read %q, %v", body, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		frames = make(chan string)
		ctx, cancel := context.WithCancel(t.Context())
		response, err := ask(t, ctx, handler, "GET", "/?watch=true", "")
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		io.ReadAll(response.Body) // ends
	})
}

func TestAWatchThatEndsEmptyIsBegunAgain(t *testing.T) {
	times := 0
	// endsEmpty is a server that ends the first n watches without an event.
	endsEmpty := func(n int, after time.Duration, then http.HandlerFunc) http.HandlerFunc {
		times = 0
		return func(w http.ResponseWriter, r *http.Request) {
			if times++; times <= n {
				w.(http.Flusher).Flush()
				time.Sleep(after)
				return
			}
			then(w, r)
		}
	}
	event := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "event") }
	tooOld := func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too old resource version", http.StatusGone)
	}
	fails := func(http.ResponseWriter, *http.Request) { panic("no") }
	for _, c := range []struct {
		name, path string
		handler    func() http.HandlerFunc
		times      int
		body       string
	}{
		{"the server was busy", "/?watch=1", func() http.HandlerFunc { return endsEmpty(3, 0, event) }, 4, "event"},
		{"the watch had its time", "/?watch=1", func() http.HandlerFunc { return endsEmpty(3, emptyWatch, event) }, 1, ""},
		{"it is no watch", "/?follow=1", func() http.HandlerFunc { return endsEmpty(3, 0, event) }, 1, ""},
		{"its place is lost", "/?watch=1", func() http.HandlerFunc { return endsEmpty(1, 0, tooOld) }, 2, ""},
		{"the server fails", "/?watch=1", func() http.HandlerFunc { return endsEmpty(1, 0, fails) }, 2, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				response, err := ask(t, t.Context(), c.handler(), "GET", c.path, "")
				if err != nil {
					t.Fatal(err)
				}
				if body, _ := io.ReadAll(response.Body); string(body) != c.body || times != c.times || response.StatusCode != http.StatusOK {
					t.Errorf("read %q after %d requests, want %q after %d", body, times, c.body, c.times)
				}
			})
		})
	}
}

func TestAWatchThatNobodyReadsHoldsItsWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		written := 0
		response, err := ask(t, t.Context(), func(w http.ResponseWriter, r *http.Request) {
			for range 100 {
				n, _ := w.Write(make([]byte, streamLimit/10))
				written += n
			}
		}, "GET", "/?watch=true", "")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if written > streamLimit+streamLimit/5 {
			t.Errorf("%d bytes wait to be read", written)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil || len(body) != 100*(streamLimit/10) || !bytes.Equal(body, make([]byte, len(body))) {
			t.Errorf("read %d bytes, %v", len(body), err)
		}
	})
}
