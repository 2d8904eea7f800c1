// Package controllers lists Weft's own controllers; each is a small package
// below this one.
package controllers

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"weft.dev/weft/controlplane/controllers/cronjob"
	"weft.dev/weft/controlplane/controllers/daemonset"
	"weft.dev/weft/controlplane/controllers/deployment"
	"weft.dev/weft/controlplane/controllers/endpoints"
	"weft.dev/weft/controlplane/controllers/endpointslice"
	"weft.dev/weft/controlplane/controllers/endpointslicemirroring"
	"weft.dev/weft/controlplane/controllers/ingressaccess"
	"weft.dev/weft/controlplane/controllers/job"
	"weft.dev/weft/controlplane/controllers/loadbalancer"
	"weft.dev/weft/controlplane/controllers/localvolume"
	"weft.dev/weft/controlplane/controllers/nodecidr"
	"weft.dev/weft/controlplane/controllers/replicaset"
	"weft.dev/weft/controlplane/controllers/servingcsr"
	"weft.dev/weft/controlplane/controllers/statefulset"
	"weft.dev/weft/controlplane/reconcile"
)

// Deps is what the controllers are made from.
type Deps struct {
	// Client returns the client of one controller: with its own user agent,
	// acting as the service account of that name in kube-system.
	Client func(controller string) kubernetes.Interface
	// Dynamic is the same for custom resources.
	Dynamic func(controller string) dynamic.Interface
	// Informers are shared; start them when New has returned.
	Informers informers.SharedInformerFactory
	// PodCIDRs are the cluster's pod addresses: one prefix, or one of each
	// family. A node's part of them has a prefix of NodeMaskIPv4 or NodeMaskIPv6 bits.
	PodCIDRs                   []netip.Prefix
	NodeMaskIPv4, NodeMaskIPv6 int
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

func (d Deps) podRanges() []nodecidr.Range {
	var ranges []nodecidr.Range
	for _, prefix := range d.PodCIDRs {
		bits := d.NodeMaskIPv6
		if prefix.Addr().Is4() {
			bits = d.NodeMaskIPv4
		}
		ranges = append(ranges, nodecidr.Range{Cluster: prefix, NodeBits: bits})
	}
	return ranges
}

// New makes every controller. None does anything before its Run is called, and
// Run waits for the informers.
func New(deps Deps) ([]reconcile.Runner, error) {
	if deps.Client == nil || deps.Dynamic == nil || deps.Informers == nil {
		return nil, errors.New("controllers need Client, Dynamic and Informers")
	}
	builders := []struct {
		name string // the service account it acts as
		new  func(reconcile.Env) (reconcile.Runner, error)
	}{
		{"replicaset-controller", runner(replicaset.New)},
		{"replication-controller", runner(replicaset.NewReplication)},
		{"deployment-controller", runner(deployment.New)},
		{"statefulset-controller", runner(statefulset.New)},
		{"daemon-set-controller", runner(daemonset.New)},
		{"job-controller", runner(job.New)},
		{"cronjob-controller", runner(cronjob.New)},
		{"endpointslice-controller", runner(endpointslice.New)},
		{"endpointslicemirroring-controller", runner(endpointslicemirroring.New)},
		{"endpoint-controller", runner(endpoints.New)},
		{"node-controller", runner(func(env reconcile.Env) (*nodecidr.Controller, error) { return nodecidr.New(env, deps.podRanges()) })},
		{"serving-certificate-controller", runner(servingcsr.New)},
		{"ingress-access-controller", runner(ingressaccess.New)},
		{"local-volume-controller", runner(localvolume.New)},
		{"load-balancer-controller", runner(func(env reconcile.Env) (*loadbalancer.Controller, error) {
			return loadbalancer.New(env, deps.Dynamic(env.Name))
		})},
	}
	var runners []reconcile.Runner
	for _, b := range builders {
		r, err := b.new(reconcile.Env{
			Name:      b.name,
			Client:    deps.Client(b.name),
			Informers: deps.Informers,
			Log:       deps.Log,
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
		runners = append(runners, r)
	}
	return runners, nil
}

// runner widens the result of a controller's constructor.
func runner[T reconcile.Runner](construct func(reconcile.Env) (T, error)) func(reconcile.Env) (reconcile.Runner, error) {
	return func(env reconcile.Env) (reconcile.Runner, error) { return construct(env) }
}
