package l7

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// traffic is constant requests from several clients.
type traffic struct {
	cancel  context.CancelFunc
	clients sync.WaitGroup
	count   atomic.Int64
	failure atomic.Pointer[error]
	ticks   chan struct{}
}

func load(t *testing.T, newRequest func() *http.Request) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &traffic{cancel: cancel, ticks: make(chan struct{})}
	for range 4 {
		l.clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				if err := once(client, newRequest()); err != nil {
					l.failure.CompareAndSwap(nil, &err)
				}
				l.count.Add(1)
				select {
				case l.ticks <- struct{}{}:
				default:
				}
			}
		})
	}
	return l
}

func once(client *http.Client, request *http.Request) error {
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", response.Status)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

// goOn returns after some more requests.
func (l *traffic) goOn() {
	for range 8 {
		<-l.ticks
	}
}

// end stops the clients and fails the test if one request has failed.
func (l *traffic) end(t *testing.T) {
	t.Helper()
	l.cancel()
	l.clients.Wait()
	if err := l.failure.Load(); err != nil {
		t.Errorf("of %d requests one failed: %v", l.count.Load(), *err)
	}
}

func (b *bench) newGet() *http.Request {
	request, err := http.NewRequest("GET", "http://"+b.httpAddress+"/", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return request
}

func TestChangesUnderLoadLoseNoRequest(t *testing.T) {
	one, two := backend(t, "one"), backend(t, "two")
	b := newBench(t, PlainHTTP, endpointOf(one))
	clients := load(t, b.newGet)
	for i := range 50 {
		clients.goOn()
		b.withEndpoints([]string{endpointOf(one), endpointOf(two)}[i%2])
		b.withHosts(Host{Pattern: fmt.Sprintf("h%d.test", i)}, b.config.Listeners[0].Hosts[len(b.config.Listeners[0].Hosts)-1])
	}
	clients.end(t)
}

// TestEndpointsThatVanishUnderLoadLoseNoRequest replaces endpoints as a
// rolling update does at its worst: the old one dies first, connections and
// all, and the snapshot hears of it later.
func TestEndpointsThatVanishUnderLoadLoseNoRequest(t *testing.T) {
	stable := backend(t, "stable")
	old := backend(t, "old")
	b := newBench(t, PlainHTTP, endpointOf(stable), endpointOf(old))
	clients := load(t, b.newGet)
	for range 15 {
		next := backend(t, "next")
		clients.goOn()
		old.Listener.Close()
		old.CloseClientConnections()
		clients.goOn()
		b.withEndpoints(endpointOf(stable), endpointOf(old), endpointOf(next))
		b.withEndpoints(endpointOf(stable), endpointOf(next))
		old = next
	}
	clients.end(t)
}

func TestRequestsThatMayHaveBeenActedUponAreNotRepeated(t *testing.T) {
	var calls atomic.Int64
	abort := func() *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			calls.Add(1)
			panic(http.ErrAbortHandler)
		}))
		t.Cleanup(s.Close)
		return s
	}
	b := newBench(t, PlainHTTP, endpointOf(abort()), endpointOf(abort()), endpointOf(abort()))
	for _, c := range []struct {
		method, body string
		want         int64
	}{
		{"GET", "", 3},
		{"DELETE", "", 3},
		{"POST", "", 1},
		{"POST", "body", 1},
		{"PUT", "body", 1},
		{"PATCH", "", 1},
	} {
		calls.Store(0)
		request, _ := http.NewRequest(c.method, "http://"+b.httpAddress+"/", strings.NewReader(c.body))
		response, _ := do(t, http.DefaultClient, request)
		if calls.Load() != c.want || response.StatusCode != http.StatusBadGateway {
			t.Errorf("%s with body %q: %d calls and status %d, want %d calls and 502", c.method, c.body, calls.Load(), response.StatusCode, c.want)
		}
	}
}

func TestPostIsRepeatedIfNoEndpointWasReached(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	b := newBench(t, PlainHTTP, endpointOf(closed), endpointOf(backend(t, "open")))
	for range 4 {
		request, _ := http.NewRequest("POST", "http://"+b.httpAddress+"/", strings.NewReader("body"))
		if response, body := do(t, http.DefaultClient, request); response.StatusCode != 200 {
			t.Errorf("status %d: %s", response.StatusCode, body)
		}
	}
}

func TestRequestsReachAllEndpointsAndNoneThatIsGone(t *testing.T) {
	seen := map[string]int{}
	var endpoints []string
	for i := range 5 {
		endpoints = append(endpoints, endpointOf(backend(t, fmt.Sprint(i))))
	}
	b := newBench(t, PlainHTTP, endpoints...)
	ask := func(n int) {
		clear(seen)
		for range n {
			response, _ := get(t, "http://"+b.httpAddress)
			seen[response.Header.Get("X-Backend")]++
		}
	}
	ask(100)
	for i := range 5 {
		if seen[fmt.Sprint(i)] < 10 {
			t.Errorf("endpoint %d got %d of 100 requests", i, seen[fmt.Sprint(i)])
		}
	}
	b.withEndpoints(endpoints[:2]...)
	ask(20)
	if len(seen) != 2 {
		t.Errorf("after removal these answered: %v", seen)
	}
}

func TestIdleConnectionsToRemovedEndpointsAreClosed(t *testing.T) {
	closed := make(chan struct{}, 8)
	gone := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	gone.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- struct{}{}
		}
	}
	gone.Start()
	t.Cleanup(gone.Close)
	b := newBench(t, PlainHTTP, endpointOf(gone))
	get(t, "http://"+b.httpAddress)
	b.withEndpoints()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("the connection is still open")
	}
}

func TestApplyThatFailsChangesNothing(t *testing.T) {
	b := newBench(t, PlainHTTP, endpointOf(backend(t, "one")))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	good := b.config
	for _, c := range []struct {
		name string
		edit func(*Config)
	}{
		{"an address that is taken", func(c *Config) { c.Listeners[0].Address = taken.Addr().String() }},
		{"two listeners with one address", func(c *Config) { c.Listeners[1].Address = c.Listeners[0].Address }},
		{"an unknown protocol", func(c *Config) { c.Listeners[0].Protocol = "SMTP" }},
		{"a wildcard inside a host", func(c *Config) { c.Listeners[0].Hosts = []Host{{Pattern: "a.*.test"}} }},
		{"a host twice", func(c *Config) { c.Listeners[0].Hosts = []Host{{Pattern: "a.test"}, {Pattern: "A.test"}} }},
		{"an unknown cluster", func(c *Config) { c.Clusters = nil }},
		{"an unknown scheme", func(c *Config) { c.Clusters[0].Scheme = "ftp" }},
		{"an endpoint without port", func(c *Config) { c.Clusters[0].Endpoints = []string{"10.0.0.1"} }},
	} {
		bad := Config{Listeners: append([]Listener(nil), good.Listeners...), Clusters: append([]Cluster(nil), good.Clusters...)}
		c.edit(&bad)
		if err := b.Apply(t.Context(), bad); err == nil {
			t.Errorf("%s is accepted", c.name)
		}
	}
	if response, _ := get(t, "http://"+b.httpAddress); response.StatusCode != 200 {
		t.Errorf("afterwards the status is %d", response.StatusCode)
	}
}

func TestListenerChangesProtocolWithoutClosing(t *testing.T) {
	b := newBench(t, PlainHTTP, endpointOf(backend(t, "one")))
	kept := &http.Client{Transport: &http.Transport{}}
	do(t, kept, b.newGet())
	b.config.Listeners = append([]Listener(nil), b.config.Listeners...)
	b.config.Listeners[0].Protocol = HTTPS
	b.config.Listeners[0].DefaultCertificate = "default"
	b.apply()
	if response, _ := do(t, kept, b.newGet()); response.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("an old connection gets status %d, want 421", response.StatusCode)
	}
	request, _ := http.NewRequest("GET", "https://"+b.httpAddress, nil)
	if response, _ := do(t, &http.Client{Transport: skipVerify("")}, request); response.StatusCode != 200 {
		t.Errorf("a new connection gets status %d", response.StatusCode)
	}
}

func TestRemovedListenerFinishesItsRequests(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		io.WriteString(w, "done")
	}))
	t.Cleanup(slow.Close)
	b := newBench(t, PlainHTTP, endpointOf(slow))
	result := make(chan error, 1)
	go func() {
		response, err := http.DefaultClient.Do(b.newGet())
		if err == nil {
			var body []byte
			body, err = io.ReadAll(response.Body)
			if string(body) != "done" {
				err = errors.Join(err, fmt.Errorf("body %q", body))
			}
		}
		result <- err
	}()
	<-entered
	b.config = Config{}
	b.apply()
	if conn, err := net.Dial("tcp", b.httpAddress); err == nil {
		// Shutdown closes the socket in the background.
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the removed listener still answers")
		}
		conn.Close()
	}
	close(release)
	if err := <-result; err != nil {
		t.Error(err)
	}
}
