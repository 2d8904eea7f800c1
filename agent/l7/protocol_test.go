package l7

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

func TestWebSocketsPassThrough(t *testing.T) {
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer conn.CloseNow()
		for {
			kind, message, err := conn.Read(r.Context())
			if err != nil || conn.Write(r.Context(), kind, message) != nil {
				return
			}
		}
	}))
	t.Cleanup(echo.Close)
	b := newBench(t, PlainHTTP, endpointOf(echo))
	for _, url := range []string{"ws://" + b.httpAddress, "wss://" + b.tlsAddress} {
		client := &http.Client{Transport: skipVerify("")}
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = false
		conn, _, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{HTTPClient: client})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			want := fmt.Sprint("message ", i)
			if err := conn.Write(t.Context(), websocket.MessageText, []byte(want)); err != nil {
				t.Fatal(err)
			}
			if i == 1 {
				b.withHosts(b.config.Listeners[0].Hosts...)
			}
			if _, got, err := conn.Read(t.Context()); err != nil || string(got) != want {
				t.Errorf("%s: echo %q (%v), want %q", url, got, err, want)
			}
		}
		conn.CloseNow()
	}
}

func TestCloseEndsWebSockets(t *testing.T) {
	hold := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conn, err := websocket.Accept(w, r, nil); err == nil {
			conn.Read(r.Context())
		}
	}))
	t.Cleanup(hold.Close)
	b := newBench(t, PlainHTTP, endpointOf(hold))
	conn, _, err := websocket.Dial(t.Context(), "ws://"+b.httpAddress, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, _, err := conn.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the connection is still open: %v", err)
	}
}

func TestGRPCPassesThrough(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	checks := health.NewServer()
	checks.SetServingStatus("known", healthv1.HealthCheckResponse_SERVING)
	server := grpc.NewServer()
	healthv1.RegisterHealthServer(server, checks)
	go server.Serve(listener)
	t.Cleanup(server.Stop)

	b := newBench(t, H2C, listener.Addr().String())
	conn, err := grpc.NewClient(b.httpAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := healthv1.NewHealthClient(conn)
	if _, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "known"}); err != nil {
		t.Error(err)
	}
	// The status of an error is in trailers.
	if _, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "unknown"}); err == nil || !strings.Contains(err.Error(), "unknown service") {
		t.Errorf("error %v, want the server's", err)
	}
	watch, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{Service: "known"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	checks.SetServingStatus("known", healthv1.HealthCheckResponse_NOT_SERVING)
	if update, err := watch.Recv(); err != nil || update.Status != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("stream gave %v, %v", update, err)
	}
}

func TestMetricsCountByRouteAndForgetRemovedOnes(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := New(Options{Registerer: registry})
	t.Cleanup(func() { s.Close(t.Context()) })
	config := Config{Listeners: []Listener{{Name: "http", Address: "127.0.0.1:0", Protocol: HTTP, Hosts: []Host{
		{Routes: []Route{{Name: "empty", Match: Match{Path: "/", PathKind: Prefix}}}},
	}}}}
	if err := s.Apply(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	get(t, "http://"+s.Addresses()["127.0.0.1:0"].String())
	if got := testutil.ToFloat64(s.metrics.requests.WithLabelValues("http", "empty", "5xx")); got != 1 {
		t.Errorf("%v requests are counted, want 1", got)
	}
	config.Listeners = []Listener{{Name: "http", Address: "127.0.0.1:0", Protocol: HTTP}}
	if err := s.Apply(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if n, err := testutil.GatherAndCount(registry); n != 0 || err != nil {
		t.Errorf("%d series are left (%v)", n, err)
	}
}

func TestWeightsShareRequests(t *testing.T) {
	r := &route{backends: []Backend{{"a", 3}, {"b", 1}}, weight: 4}
	got := ""
	for ticket := range r.weight {
		got += r.pick(ticket)
	}
	if got != "aaab" {
		t.Errorf("tickets go to %s", got)
	}
}
