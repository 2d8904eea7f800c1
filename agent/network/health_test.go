package network

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/agent/desired"
)

func TestHealthCheckPortFollowsLocalEndpoints(t *testing.T) {
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(probe.Addr().String()).Port()
	probe.Close()
	h := newHealthServer(slog.New(slog.NewTextHandler(io.Discard, nil)))
	t.Cleanup(h.close)
	check := desired.HealthCheck{Service: types.NamespacedName{Namespace: "default", Name: "web"}, Port: port}
	get := func() (int, string) {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", port))
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	for _, tt := range []struct {
		endpoints, status int
	}{{2, 200}, {0, 503}, {1, 200}} {
		check.LocalEndpoints = tt.endpoints
		if err := h.sync([]desired.HealthCheck{check}); err != nil {
			t.Fatal(err)
		}
		status, body := get()
		want := fmt.Sprintf(`{"service":{"namespace":"default","name":"web"},"localEndpoints":%d,"serviceProxyHealthy":true}`, tt.endpoints)
		if status != tt.status || strings.TrimSpace(body) != want {
			t.Errorf("%d endpoints: %d %s, want %d %s", tt.endpoints, status, body, tt.status, want)
		}
	}
	if err := h.sync(nil); err != nil {
		t.Fatal(err)
	}
	if status, _ := get(); status != 0 {
		t.Errorf("the port of a removed Service still answers %d", status)
	}
}
