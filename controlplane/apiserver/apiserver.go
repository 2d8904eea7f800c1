// Package apiserver runs the upstream Kubernetes API server in this process:
// options, configuration, server chain, as kube-apiserver's own main does, but
// without its command.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"weft.dev/weft/controlplane/pki"
)

// readyPoll is how often WaitReady asks; a start takes a few seconds.
const readyPoll = 50 * time.Millisecond

// Server is an API server that has been put together, and perhaps runs.
type Server struct {
	chain *aggregatorapiserver.APIAggregator
	// local answers requests of clients in this process, each within limit.
	local http.Handler
	limit time.Duration
	// serving is closed when the handlers are complete.
	serving chan struct{}
}

// New builds the API server; the store must be there. Nothing is served
// before Run. Upstream keeps process-wide state (feature gates, metrics,
// capabilities), so a process has one API server at a time.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make API server directory: %w", err)
	}
	if err := pki.WriteFile(cfg.authenticationFile(), []byte(authentication), 0o600); err != nil {
		return nil, err
	}
	opts, err := complete(ctx, cfg.args())
	if err != nil {
		return nil, fmt.Errorf("API server options: %w", err)
	}
	config, err := app.NewConfig(opts)
	if err != nil {
		return nil, fmt.Errorf("configure API server: %w", err)
	}
	if cfg.Etcd.Client != nil {
		if err := useStoreInProcess(ctx, config, cfg.Etcd.Client); err != nil {
			return nil, fmt.Errorf("configure API server: %w", err)
		}
	}
	s := &Server{serving: make(chan struct{}), limit: config.Aggregator.GenericConfig.RequestTimeout}
	build := config.Aggregator.GenericConfig.BuildHandlerChainFunc
	config.Aggregator.GenericConfig.BuildHandlerChainFunc = func(handler http.Handler, c *server.Config) http.Handler {
		s.local = localChain(handler, c)
		return build(handler, c)
	}
	completed, err := config.Complete()
	if err != nil {
		return nil, fmt.Errorf("configure API server: %w", err)
	}
	s.chain, err = app.CreateServerChain(completed)
	if err != nil {
		return nil, fmt.Errorf("build API server: %w", err)
	}
	return s, nil
}

// complete turns flags into validated options.
func complete(ctx context.Context, args []string) (options.CompletedOptions, error) {
	opts := options.NewServerRunOptions()
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, set := range opts.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(args); err != nil {
		return options.CompletedOptions{}, err
	}
	// Nothing of metrics is configured, and applying that logs an error.
	opts.Metrics = nil
	// Without effect if feature gates have been set already.
	if err := opts.GenericServerRunOptions.ComponentGlobalsRegistry.SetFallback(); err != nil {
		return options.CompletedOptions{}, err
	}
	completed, err := opts.Complete(ctx)
	if err != nil {
		return options.CompletedOptions{}, err
	}
	return completed, utilerrors.NewAggregate(completed.Validate())
}

// Run serves until ctx is done and requests in flight have been answered. It
// may be called once.
func (s *Server) Run(ctx context.Context) error {
	prepared, err := s.chain.PrepareRun()
	if err != nil {
		return fmt.Errorf("prepare API server: %w", err)
	}
	close(s.serving)
	if err := prepared.Run(ctx); err != nil {
		return fmt.Errorf("run API server: %w", err)
	}
	return nil
}

// LoopbackConfig returns a configuration for clients in this process, with
// all rights and without a client-side rate limit: the server's own priority
// and fairness protects it. Its requests take no way over the network, see
// inProcess.
func (s *Server) LoopbackConfig() *rest.Config {
	cfg := rest.CopyConfig(s.chain.GenericAPIServer.LoopbackClientConfig)
	cfg.QPS, cfg.Burst = -1, 0
	cfg.RateLimiter = nil
	cfg.TLSClientConfig = rest.TLSClientConfig{}
	cfg.Transport = inProcess{full: s.chain.GenericAPIServer.Handler, local: s.local, limit: s.limit, ready: s.serving}
	return cfg
}

// WaitReady returns when /readyz answers 200, or with an error when ctx is
// done first; the error then holds the checks that still failed.
func (s *Server) WaitReady(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(s.LoopbackConfig())
	if err != nil {
		return fmt.Errorf("make loopback client: %w", err)
	}
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	var last error
	for {
		status := 0
		body, err := client.RESTClient().Get().AbsPath("/readyz").Param("verbose", "").Do(ctx).StatusCode(&status).Raw()
		if err == nil && status == http.StatusOK {
			return nil
		}
		if ctx.Err() == nil {
			last = fmt.Errorf("%w: %s", err, body)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for API server: %w", errors.Join(ctx.Err(), last))
		case <-tick.C:
		}
	}
}
