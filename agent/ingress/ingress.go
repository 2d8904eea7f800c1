// Package ingress makes the l7 engine of this node serve the cluster's
// Ingresses, and tells their owners about it.
//
//	Ingresses, classes, Services, EndpointSlices, TLS Secrets
//	        │ informers
//	        ▼
//	Translate (pure) ──► l7.Config ──► l7.Server.Apply
//	        ├──► hosts to issue certificates for ──► certs
//	        └──► status and events
//
// Every node serves every Ingress. Backends are pod addresses, not ClusterIPs.
package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/agent/certs"
	"weft.dev/weft/agent/l7"
)

const (
	// DefaultHTTPAddress and DefaultHTTPSAddress are every address of the node.
	DefaultHTTPAddress  = ":80"
	DefaultHTTPSAddress = ":443"

	// pause folds a burst of changes into one pass; the first is not delayed.
	pause = 20 * time.Millisecond
	// applyRetry is when a Config that could not be applied is tried again:
	// mostly because a pod has the port.
	applyRetry = 5 * time.Second
	// closeTimeout is how long requests may go on when the agent stops.
	closeTimeout = 10 * time.Second
)

// Config is what Ingress needs.
type Config struct {
	NodeName string
	Client   kubernetes.Interface
	// Cluster provides Ingresses, IngressClasses, Services, EndpointSlices and
	// Nodes. Its owner starts it after New.
	Cluster informers.SharedInformerFactory
	// HTTPAddress and HTTPSAddress are host:port; empty means the defaults.
	HTTPAddress, HTTPSAddress string
	// Issuer signs certificates; nil means Weft's own CA.
	Issuer certmagic.Issuer
	// Registerer takes the metrics of the l7 engine; nil means none.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

func (c *Config) complete() error {
	if c.NodeName == "" || c.Client == nil || c.Cluster == nil {
		return errors.New("ingress: NodeName, Client and Cluster are required")
	}
	if c.HTTPAddress == "" {
		c.HTTPAddress = DefaultHTTPAddress
	}
	if c.HTTPSAddress == "" {
		c.HTTPSAddress = DefaultHTTPSAddress
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Ingress is the component.
type Ingress struct {
	cfg       Config
	httpsPort uint16
	watch     watched
	issued    *certs.Certificates
	secrets   *secrets
	server    *l7.Server
	reporter  *reporter

	dirty chan struct{}
	// used are the Services of the last pass: changes of others do not matter.
	used atomic.Pointer[map[types.NamespacedName]bool]
	last l7.Config
}

// New checks cfg and registers with its informers; it starts nothing.
func New(cfg Config) (*Ingress, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(cfg.HTTPSAddress)
	if err != nil {
		return nil, fmt.Errorf("ingress: HTTPSAddress: %w", err)
	}
	httpsPort, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("ingress: HTTPSAddress: %w", err)
	}
	issued, err := certs.New(certs.Config{Node: cfg.NodeName, Client: cfg.Client, Issuer: cfg.Issuer, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	i := &Ingress{cfg: cfg, httpsPort: uint16(httpsPort), issued: issued, dirty: make(chan struct{}, 1)}
	i.used.Store(&map[types.NamespacedName]bool{})
	if i.watch, err = i.register(cfg.Cluster); err != nil {
		return nil, err
	}
	i.secrets = newSecrets(cfg.Client, i.markDirty)
	i.reporter = newReporter(cfg, i.watch.nodes)
	i.server = l7.New(l7.Options{Certificates: i, Registerer: cfg.Registerer, Log: cfg.Log})
	return i, nil
}

// Run serves until ctx is done, then lets requests under way finish for a
// while.
func (i *Ingress) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), i.watch.synced...) {
		return nil
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		if err := i.issued.Run(ctx); err != nil {
			i.cfg.Log.Error("certificates are not issued", "error", err)
		}
	})
	running.Go(func() { i.reporter.run(ctx) })
	defer i.secrets.stop()
	i.loop(ctx)

	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := i.server.Close(closing); err != nil {
		i.cfg.Log.Info("requests were cut off at stop", "error", err)
	}
	return nil
}

func (i *Ingress) loop(ctx context.Context) {
	for {
		again := i.pass(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		var retry <-chan time.Time
		if again > 0 {
			retry = time.After(again)
		}
		select {
		case <-ctx.Done():
			return
		case <-i.dirty:
		case <-retry:
		}
	}
}

// pass makes everything equal to what the objects say now. again is when to
// repeat it although nothing changes; 0 is never.
func (i *Ingress) pass(ctx context.Context) (again time.Duration) {
	out := Translate(i.inputs())
	before := *i.used.Swap(&out.Services)
	for service := range out.Services {
		if !before[service] {
			// Its events were filtered out while the listers were read.
			i.markDirty()
		}
	}
	i.secrets.watch(ctx, out.Secrets)
	i.issued.Manage(out.Issue)
	if !reflect.DeepEqual(out.Config, i.last) {
		if err := i.server.Apply(ctx, out.Config); err != nil {
			i.cfg.Log.Error("ingress configuration not applied, the one before stays", "error", err, "again", applyRetry)
			return applyRetry
		}
		i.last = out.Config
	}
	i.reporter.report(out.Ours, out.Problems)
	return i.secrets.settles()
}

func (i *Ingress) inputs() Inputs {
	in := Inputs{
		HTTPAddress: i.cfg.HTTPAddress, HTTPSAddress: i.cfg.HTTPSAddress, HTTPSPort: i.httpsPort,
		Service: i.service, Slices: i.slices, Secret: i.secrets.state,
	}
	// Listers of a cache fail only for objects that are not there.
	in.Ingresses, _ = i.watch.ingresses.List(labels.Everything())
	in.Classes, _ = i.watch.classes.List(labels.Everything())
	return in
}

func (i *Ingress) service(name types.NamespacedName) *corev1.Service {
	service, err := i.watch.services.Services(name.Namespace).Get(name.Name)
	if err != nil {
		return nil
	}
	return service
}

func (i *Ingress) slices(name types.NamespacedName) []*discoveryv1.EndpointSlice {
	objects, err := i.watch.slices.ByIndex(serviceIndex, name.String())
	if err != nil {
		return nil
	}
	found := make([]*discoveryv1.EndpointSlice, 0, len(objects))
	for _, object := range objects {
		found = append(found, object.(*discoveryv1.EndpointSlice))
	}
	return found
}

func (i *Ingress) markDirty() {
	select {
	case i.dirty <- struct{}{}:
	default:
	}
}

// Certificate implements l7.Certificates.
func (i *Ingress) Certificate(name string, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if secret, ok := strings.CutPrefix(name, secretPrefix); ok {
		if cert := i.secrets.certificate(secret); cert != nil {
			return cert, nil
		}
		return i.issued.Default()
	}
	if strings.HasPrefix(name, issuedPrefix) {
		return i.issued.Certificate(hello)
	}
	return i.issued.Default()
}
