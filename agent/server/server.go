// Package server is the node API on port 10250: what the API server, metrics
// collectors and administrators ask of one node, as kubelet answers it.
//
//	client ──TLS──► authenticate ──► authorize ──► logs       ◄── log files
//	                (x509, token)    (SAR)         exec …     ──► CRI streaming server
//	                                               pods       ◄── agent/pods
//	                                               stats      ◄── CRI, /proc
//
// Everything fails closed: no certificate, no handshake; no answer from the
// API server about a caller, no access.
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

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/pods"
)

// Pods is what the node API knows of the pods of this node; agent/pods has it.
// All methods may be called concurrently; pods are not modified.
type Pods interface {
	// Pods lists all pods with their present status.
	Pods() []*corev1.Pod
	Pod(namespace, name string) (*corev1.Pod, bool)
	// Container is the newest instance of an app, init or ephemeral container.
	Container(podUID types.UID, name string) (pods.Container, bool)
}

// Runtime is a part of runtimeapi.RuntimeServiceClient.
type Runtime interface {
	ListPodSandbox(ctx context.Context, in *runtimeapi.ListPodSandboxRequest, opts ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error)
	ListContainers(ctx context.Context, in *runtimeapi.ListContainersRequest, opts ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error)
	ContainerStatus(ctx context.Context, in *runtimeapi.ContainerStatusRequest, opts ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error)
	ExecSync(ctx context.Context, in *runtimeapi.ExecSyncRequest, opts ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error)
	Exec(ctx context.Context, in *runtimeapi.ExecRequest, opts ...grpc.CallOption) (*runtimeapi.ExecResponse, error)
	Attach(ctx context.Context, in *runtimeapi.AttachRequest, opts ...grpc.CallOption) (*runtimeapi.AttachResponse, error)
	PortForward(ctx context.Context, in *runtimeapi.PortForwardRequest, opts ...grpc.CallOption) (*runtimeapi.PortForwardResponse, error)
	ListContainerStats(ctx context.Context, in *runtimeapi.ListContainerStatsRequest, opts ...grpc.CallOption) (*runtimeapi.ListContainerStatsResponse, error)
	ListPodSandboxStats(ctx context.Context, in *runtimeapi.ListPodSandboxStatsRequest, opts ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error)
}

// Config is what a Server needs.
type Config struct {
	NodeName string
	// Addresses to listen on, all at Port.
	Addresses []netip.Addr
	Port      int
	// Certificate is for tls.Config.GetCertificate; see join.Serving.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// ClientCAFile holds the CA that signs client certificates, the API
	// server's among them. It is read again when it changes.
	ClientCAFile string
	// Client asks the API server who a token belongs to, and what a user may do.
	Client  kubernetes.Interface
	Pods    Pods
	Runtime Runtime
	// Metrics are shown at /metrics; nil = those of the process alone.
	Metrics prometheus.Gatherer
	// StateDir is on the file system whose use /stats/summary tells; "" tells none.
	StateDir string
	Log      *slog.Logger // nil = slog.Default()
}

func (c *Config) validate() error {
	var errs []error
	for name, missing := range map[string]bool{
		"node name": c.NodeName == "", "address or port": len(c.Addresses) == 0 || c.Port == 0, "certificate": c.Certificate == nil,
		"client CA file": c.ClientCAFile == "", "client": c.Client == nil, "pods": c.Pods == nil,
		"runtime": c.Runtime == nil,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("%s is missing", name))
		}
	}
	return errors.Join(errs...)
}

// Server answers the node API.
type Server struct {
	cfg  Config
	log  *slog.Logger
	auth *auth
}

// New validates cfg and reads the client CA. It starts nothing.
func New(cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("node API configuration: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Metrics == nil {
		registry := prometheus.NewRegistry()
		registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
		cfg.Metrics = registry
	}
	a, err := newAuth(cfg)
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, log: cfg.Log, auth: a}, nil
}

// Run serves until ctx is done; open streams end then.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		s.auth.run(ctx)
		return nil
	})
	handler := s.Handler()
	for _, address := range s.cfg.Addresses {
		listener, err := net.Listen("tcp", net.JoinHostPort(address.String(), strconv.Itoa(s.cfg.Port)))
		if err != nil {
			group.Go(func() error { return fmt.Errorf("node API: %w", err) })
			break
		}
		group.Go(func() error { return s.serve(ctx, listener, handler) })
	}
	return group.Wait()
}

// serve answers the connections of one listener until ctx is done.
func (s *Server) serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler:           handler,
		TLSConfig:         s.tlsConfig(),
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("node API: %w", err)
	}
	return nil
}

func (s *Server) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: s.cfg.Certificate,
		// Verified by the authenticator: other callers bring a token.
		ClientAuth: tls.RequestClientCert,
	}
}

// Handler is the API behind authentication and authorization, for use with
// the server's TLS settings.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	mux.HandleFunc("GET /pods", s.listPods)
	mux.HandleFunc("GET /pods/{$}", s.listPods)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	mux.HandleFunc("GET /stats/summary", s.summary)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /metrics/resource", s.resourceMetrics)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		for path, handler := range map[string]http.HandlerFunc{"exec": s.exec, "attach": s.attach} {
			mux.HandleFunc(method+" /"+path+"/{namespace}/{pod}/{container}", handler)
			mux.HandleFunc(method+" /"+path+"/{namespace}/{pod}/{uid}/{container}", handler)
		}
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", s.portForward)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}/{uid}", s.portForward)
	}
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.run)
	mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", s.run)
	return s.auth.protect(mux)
}
