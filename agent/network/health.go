package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"weft.dev/weft/agent/desired"
)

// healthServer answers external load balancers on healthCheckNodePorts: 200
// while this node has ready endpoints of the Service, else 503, in the form
// that kube-proxy uses (k8s.io/kubernetes/pkg/proxy/healthcheck).
type healthServer struct {
	log *slog.Logger
	mu  sync.Mutex
	on  map[uint16]*healthPort
}

type healthPort struct {
	check  atomic.Pointer[desired.HealthCheck]
	server *http.Server
}

func newHealthServer(log *slog.Logger) *healthServer {
	return &healthServer{log: log, on: map[uint16]*healthPort{}}
}

// sync opens and closes ports so that exactly the given checks are answered.
func (h *healthServer) sync(checks []desired.HealthCheck) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	wanted := map[uint16]bool{}
	var errs []error
	for _, check := range checks {
		wanted[check.Port] = true
		port, ok := h.on[check.Port]
		if !ok {
			var err error
			if port, err = h.open(check.Port); err != nil {
				errs = append(errs, fmt.Errorf("health check port of service %s: %w", check.Service, err))
				continue
			}
			h.on[check.Port] = port
		}
		port.check.Store(&check)
	}
	for number, port := range h.on {
		if !wanted[number] {
			errs = append(errs, port.server.Close())
			delete(h.on, number)
		}
	}
	return errors.Join(errs...)
}

func (h *healthServer) close() { _ = h.sync(nil) } // listeners close with the process in any case

func (h *healthServer) open(number uint16) (*healthPort, error) {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(int(number)))
	if err != nil {
		return nil, err
	}
	p := &healthPort{}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := serve(p.server, l); err != nil {
			h.log.Error("health check port failed", "port", number, "error", err)
		}
	}()
	return p, nil
}

func (p *healthPort) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	check := p.check.Load()
	if check == nil { // between opening the port and the first check
		http.Error(w, "not known yet", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(check.LocalEndpoints))
	if check.LocalEndpoints == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	type name struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	}
	// A load balancer that has gone away meanwhile cannot be told.
	_ = json.NewEncoder(w).Encode(struct {
		Service             name `json:"service"`
		LocalEndpoints      int  `json:"localEndpoints"`
		ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
	}{name{check.Service.Namespace, check.Service.Name}, check.LocalEndpoints, true})
}
