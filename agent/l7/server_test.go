package l7

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"
)

// bench is a server with one HTTP and one HTTPS listener on loopback.
type bench struct {
	*Server
	t           *testing.T
	httpAddress string
	tlsAddress  string
	config      Config
}

// newBench starts a server that sends / of every host to endpoints.
func newBench(t *testing.T, scheme Scheme, endpoints ...string) *bench {
	t.Helper()
	b := &bench{t: t, Server: New(Options{Certificates: selfSigned{}})}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		b.Close(ctx)
	})
	hosts := []Host{{Routes: []Route{{
		Name: "all", Match: Match{Path: "/", PathKind: Prefix}, Retries: 2,
		Backends: []Backend{{Cluster: "c", Weight: 1}},
	}}}}
	b.config = Config{
		Listeners: []Listener{
			{Name: "http", Address: "127.0.0.1:0", Protocol: HTTP, Hosts: hosts},
			{Name: "https", Address: "localhost:0", Protocol: HTTPS, Hosts: hosts, DefaultCertificate: "default",
				Certificates: []ServerName{{"a.example.com", "a"}, {"*.example.com", "wild"}}},
		},
		Clusters: []Cluster{{Name: "c", Scheme: scheme, Endpoints: endpoints}},
	}
	b.apply()
	b.httpAddress = b.Addresses()["127.0.0.1:0"].String()
	b.tlsAddress = b.Addresses()["localhost:0"].String()
	return b
}

func (b *bench) apply() {
	b.t.Helper()
	if err := b.Apply(context.Background(), b.config); err != nil {
		b.t.Fatal(err)
	}
}

// withHosts replaces the hosts of both listeners.
func (b *bench) withHosts(hosts ...Host) {
	b.config.Listeners = append([]Listener(nil), b.config.Listeners...)
	for i := range b.config.Listeners {
		b.config.Listeners[i].Hosts = hosts
	}
	b.apply()
}

func (b *bench) withEndpoints(endpoints ...string) {
	c := b.config.Clusters[0]
	c.Endpoints = endpoints
	b.config.Clusters = []Cluster{c}
	b.apply()
}

// selfSigned makes a certificate for whatever name the Config uses.
type selfSigned struct{}

func (selfSigned) Certificate(name string, _ *tls.ClientHelloInfo) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func skipVerify(serverName string) *http.Transport {
	return &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, ServerName: serverName},
		ForceAttemptHTTP2: true,
	}
}

func endpointOf(s *httptest.Server) string { return s.Listener.Addr().String() }

// backend answers with its name, the request's protocol and headers.
func backend(t *testing.T, name string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Backend", name)
		fmt.Fprintf(w, "%s %s host=%s", r.Method, r.RequestURI, r.Host)
		for _, key := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "Keep-Alive", "X-Hop", "X-Set"} {
			if value := r.Header.Get(key); value != "" {
				fmt.Fprintf(w, " %s=%s", key, value)
			}
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func do(t *testing.T, client *http.Client, request *http.Request) (*http.Response, string) {
	t.Helper()
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return do(t, client, request)
}

func TestRequestReachesEndpointWithForwardedHeaders(t *testing.T) {
	b := newBench(t, PlainHTTP, endpointOf(backend(t, "one")))
	request, _ := http.NewRequest("GET", "http://"+b.httpAddress+"/a%2Fb?x=1;y", nil)
	request.Host = "demo.example.com"
	request.Header.Set("X-Forwarded-For", "6.6.6.6")
	request.Header.Set("Forwarded", "for=6.6.6.6")
	request.Header.Set("Connection", "X-Hop")
	request.Header.Set("X-Hop", "secret")
	_, body := do(t, http.DefaultClient, request)
	want := "GET /a%2Fb?x=1;y host=demo.example.com X-Forwarded-For=127.0.0.1 X-Forwarded-Proto=http X-Forwarded-Host=demo.example.com"
	if body != want {
		t.Errorf("the endpoint saw\n%s\nwant\n%s", body, want)
	}
}

func TestALPNChoosesHTTP2AndPlainListenersKnowItsPreface(t *testing.T) {
	b := newBench(t, PlainHTTP, endpointOf(backend(t, "one")))
	request, _ := http.NewRequest("GET", "https://"+b.tlsAddress+"/", nil)
	response, body := do(t, &http.Client{Transport: skipVerify("a.example.com")}, request)
	if response.ProtoMajor != 2 || !strings.Contains(body, "X-Forwarded-Proto=https") {
		t.Errorf("got %s, %s", response.Proto, body)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	request, _ = http.NewRequest("GET", "http://"+b.httpAddress+"/", nil)
	response, _ = do(t, &http.Client{Transport: &http.Transport{Protocols: &protocols}}, request)
	if response.ProtoMajor != 2 {
		t.Errorf("prior knowledge gave %s", response.Proto)
	}
}

func TestServerNameChoosesCertificate(t *testing.T) {
	b := newBench(t, PlainHTTP, endpointOf(backend(t, "one")))
	for _, c := range []struct{ serverName, want string }{
		{"a.example.com", "a"},
		{"A.Example.com", "a"},
		{"b.example.com", "wild"},
		{"c.b.example.com", "default"},
		{"", "default"},
	} {
		conn, err := tls.Dial("tcp", b.tlsAddress, &tls.Config{InsecureSkipVerify: true, ServerName: c.serverName})
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().PeerCertificates[0].DNSNames[0]; got != c.want {
			t.Errorf("server name %q gets certificate %s, want %s", c.serverName, got, c.want)
		}
		conn.Close()
	}
}

func TestStatusTellsWhyThereIsNoResponse(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	never := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(never.Close)
	b := newBench(t, PlainHTTP, endpointOf(backend(t, "one")))
	route := func(host, cluster string, weight int) Host {
		return Host{Pattern: host, Routes: []Route{{Name: host, Match: Match{Path: "/p", PathKind: Prefix}, Backends: []Backend{{cluster, weight}}}}}
	}
	b.config.Clusters = append(b.config.Clusters,
		Cluster{Name: "empty", Scheme: PlainHTTP},
		Cluster{Name: "closed", Scheme: PlainHTTP, Endpoints: []string{endpointOf(closed)}},
		Cluster{Name: "never", Scheme: PlainHTTP, Endpoints: []string{endpointOf(never)}, ResponseTimeout: 30 * time.Millisecond})
	limited := route("limited.test", "never", 1)
	limited.Routes[0].Timeout = 20 * time.Millisecond
	b.withHosts(route("ok.test", "c", 1), route("empty.test", "empty", 1), route("closed.test", "closed", 1),
		route("never.test", "never", 1), route("weightless.test", "c", 0), limited)
	for _, c := range []struct {
		name, host, path string
		want             int
	}{
		{"a route", "ok.test", "/p", 200},
		{"a host with a port", "OK.test:8080", "/p", 200},
		{"no route for the path", "ok.test", "/q", 404},
		{"no route for the host", "unknown.test", "/p", 404},
		{"dot segments", "ok.test", "/p/../q", 400},
		{"no endpoint", "empty.test", "/p", 503},
		{"no backend with a weight", "weightless.test", "/p", 503},
		{"endpoint refuses", "closed.test", "/p", 502},
		{"endpoint does not answer", "never.test", "/p", 504},
		{"route's time is over", "limited.test", "/p", 504},
	} {
		t.Run(c.name, func(t *testing.T) {
			request, _ := http.NewRequest("GET", "http://"+b.httpAddress+c.path, nil)
			request.Host = c.host
			if response, body := do(t, http.DefaultClient, request); response.StatusCode != c.want {
				t.Errorf("status %d (%s), want %d", response.StatusCode, body, c.want)
			}
		})
	}
}

func TestRedirectKeepsPathAndQuery(t *testing.T) {
	b := newBench(t, PlainHTTP)
	redirect := func(host string, to Redirect) Host {
		return Host{Pattern: host, Routes: []Route{{Name: host, Match: Match{Path: "/", PathKind: Prefix}, Redirect: &to}}}
	}
	b.withHosts(
		redirect("std.test", Redirect{Scheme: "https", Port: 443, Status: 308}),
		redirect("port.test", Redirect{Scheme: "https", Port: 8443, Status: 301}),
		redirect("moved.test", Redirect{Host: "new.test", Status: 302}))
	for _, c := range []struct {
		host, want string
		status     int
	}{
		{"std.test:8080", "https://std.test/a%2Fb/c?q=1&r", 308},
		{"port.test", "https://port.test:8443/a%2Fb/c?q=1&r", 301},
		{"moved.test:81", "http://new.test:81/a%2Fb/c?q=1&r", 302},
	} {
		request, _ := http.NewRequest("POST", "http://"+b.httpAddress+"/a%2Fb/c?q=1&r", strings.NewReader("x"))
		request.Host = c.host
		response, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if got := response.Header.Get("Location"); response.StatusCode != c.status || got != c.want {
			t.Errorf("%s: %d %s, want %d %s", c.host, response.StatusCode, got, c.status, c.want)
		}
	}
}

func TestFiltersEditHeadersAndRewriteTheTarget(t *testing.T) {
	b := newBench(t, PlainHTTP, endpointOf(backend(t, "one")))
	b.withHosts(Host{Routes: []Route{{
		Name: "edit", Match: Match{Path: "/old", PathKind: Prefix},
		Request:  HeaderEdit{Set: []Field{{"X-Set", "yes"}}, Remove: []string{"X-Hop"}},
		Response: HeaderEdit{Add: []Field{{"X-Added", "1"}, {"X-Added", "2"}}, Remove: []string{"X-Backend"}},
		Rewrite:  Rewrite{Host: "inner.test", Path: "/new"},
		Backends: []Backend{{"c", 1}},
	}}})
	request, _ := http.NewRequest("GET", "http://"+b.httpAddress+"/old/x?q", nil)
	request.Header.Set("X-Hop", "1")
	response, body := do(t, http.DefaultClient, request)
	if !strings.HasPrefix(body, "GET /new/x?q host=inner.test") || !strings.Contains(body, "X-Set=yes") || strings.Contains(body, "X-Hop") {
		t.Errorf("the endpoint saw %s", body)
	}
	if len(response.Header["X-Added"]) != 2 || response.Header.Get("X-Backend") != "" {
		t.Errorf("the client saw %v", response.Header)
	}
}

func TestSmuggledRequestsAreRejected(t *testing.T) {
	b := newBench(t, PlainHTTP, endpointOf(backend(t, "one")))
	for _, c := range []struct{ name, head string }{
		{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"},
		{"an unknown coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
		{"a space before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"},
		{"no host", "GET / HTTP/1.1\r\n\r\n"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"},
		{"a tunnel", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", b.httpAddress)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, c.head)
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if response.StatusCode/100 != 4 && response.StatusCode != 501 {
				t.Errorf("status %d, want a rejection", response.StatusCode)
			}
		})
	}
}

func TestBodiesStreamBothWaysWithTrailers(t *testing.T) {
	streaming := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		n, _ := io.Copy(w, r.Body)
		w.Header().Set("X-Sum", fmt.Sprint(n))
		w.Header().Set(http.TrailerPrefix+"X-Late", "unannounced")
	}))
	t.Cleanup(streaming.Close)
	b := newBench(t, PlainHTTP, endpointOf(streaming))
	body := strings.Repeat("x", 1<<20)
	for _, url := range []string{"https://" + b.tlsAddress, "http://" + b.httpAddress} {
		request, _ := http.NewRequest("POST", url, io.NopCloser(strings.NewReader(body)))
		response, got := do(t, &http.Client{Transport: skipVerify("")}, request)
		if len(got) != len(body) || response.Trailer.Get("X-Sum") != fmt.Sprint(len(body)) || response.Trailer.Get("X-Late") != "unannounced" {
			t.Errorf("%s: %d bytes, trailers %v", url, len(got), response.Trailer)
		}
	}
}

func TestInformationalResponsesPassThrough(t *testing.T) {
	early := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(early.Close)
	b := newBench(t, PlainHTTP, endpointOf(early))
	var hint string
	trace := &httptrace.ClientTrace{Got1xxResponse: func(_ int, header textproto.MIMEHeader) error {
		hint = http.Header(header).Get("Link")
		return nil
	}}
	request, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", "http://"+b.httpAddress+"/", nil)
	if response, _ := do(t, http.DefaultClient, request); response.StatusCode != http.StatusTeapot || hint == "" {
		t.Errorf("status %d, hint %q", response.StatusCode, hint)
	}
}
