// Package server is the node API that the API server calls on port 10250:
// logs, exec, attach and port-forward of this node's pods.
//
//	kubectl ──► API server ──TLS, client certificate──► here ──► CRI streaming server
//	                                                      └────► log files
//
// Nothing is answered before the caller is authenticated (client certificate
// or TokenReview) and authorized (SubjectAccessReview on the nodes resource).
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/pods"
)

// Pods is what the agent knows of this node's pods; *pods.Manager.
type Pods interface {
	Pods() []*corev1.Pod
	Pod(namespace, name string) (*corev1.Pod, bool)
	Container(podUID types.UID, name string) (pods.Container, bool)
}

// Config is what the node API needs.
type Config struct {
	NodeName  string
	Addresses []netip.Addr // each is listened on
	Port      int
	// Certificate is the serving certificate, issued by the cluster; until it
	// is there handshakes fail.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// ClientCAFile holds the authority of client certificates. It is read
	// again when it changes.
	ClientCAFile string
	// Client asks for reviews of tokens and of access.
	Client  kubernetes.Interface
	Pods    Pods
	Runtime runtimeapi.RuntimeServiceClient
	Log     *slog.Logger // nil = slog.Default()
}

// Server is the node API.
type Server struct {
	cfg     Config
	log     *slog.Logger
	guard   *guard
	handler http.Handler
}

// New checks the configuration; it listens on nothing yet.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.NodeName == "":
		return nil, errors.New("node API: NodeName must be set")
	case len(cfg.Addresses) == 0 || cfg.Port == 0:
		return nil, errors.New("node API: Addresses and Port must be set")
	case cfg.Certificate == nil || cfg.Client == nil || cfg.Pods == nil || cfg.Runtime == nil:
		return nil, errors.New("node API: Certificate, Client, Pods and Runtime must be set")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	guard, err := newGuard(cfg)
	if err != nil {
		return nil, fmt.Errorf("node API: %w", err)
	}
	s := &Server{cfg: cfg, log: cfg.Log, guard: guard}
	s.handler = s.routes()
	return s, nil
}

// routes are kubelet's (pkg/kubelet/server/server.go), each with the
// subresource of nodes that a caller needs (KEP-2862).
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern, subresource string, h http.HandlerFunc) {
		mux.Handle(pattern, s.guard.wrap(subresource, h))
	}
	handle("/healthz", "healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	handle("GET /pods", "pods", s.listPods)
	handle("GET /containerLogs/{namespace}/{pod}/{container}", "proxy", s.logs)
	for _, uid := range []string{"", "/{uid}"} {
		handle("/exec/{namespace}/{pod}"+uid+"/{container}", "proxy", s.exec)
		handle("/attach/{namespace}/{pod}"+uid+"/{container}", "proxy", s.attach)
		handle("/portForward/{namespace}/{pod}"+uid, "proxy", s.portForward)
	}
	return mux
}

// Run serves until ctx is done.
func (s *Server) Run(ctx context.Context) error {
	config := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: s.cfg.Certificate,
		// The certificate is verified by the authenticator, which answers 401.
		ClientAuth: tls.RequestClientCert,
		// Upgrades to SPDY need HTTP/1.1.
		NextProtos: []string{"http/1.1"},
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { s.guard.clientCA.Run(ctx, 1); return nil })
	for _, addr := range s.cfg.Addresses {
		listener, err := net.Listen("tcp", net.JoinHostPort(addr.String(), strconv.Itoa(s.cfg.Port)))
		if err != nil {
			return fmt.Errorf("node API: %w", err)
		}
		server := &http.Server{
			Handler: s.handler, ReadHeaderTimeout: 10 * time.Second,
			ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		}
		group.Go(func() error {
			err := server.Serve(tls.NewListener(listener, config))
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return err
		})
		group.Go(func() error {
			<-ctx.Done()
			return server.Close()
		})
	}
	return group.Wait()
}
