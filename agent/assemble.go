package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-helpers/nodedeclaredfeatures/features/inplacepodresize"

	"weft.dev/weft/agent/cri"
	"weft.dev/weft/agent/desired"
	"weft.dev/weft/agent/dns"
	"weft.dev/weft/agent/ingress"
	"weft.dev/weft/agent/join"
	"weft.dev/weft/agent/network"
	"weft.dev/weft/agent/node"
	"weft.dev/weft/agent/pods"
	"weft.dev/weft/agent/probes"
	"weft.dev/weft/agent/reclaim"
	"weft.dev/weft/agent/server"
	"weft.dev/weft/agent/server/logs"
	"weft.dev/weft/agent/volumes"
	"weft.dev/weft/controlplane/api"
	"weft.dev/weft/dataplane"
)

// parts is what components are made of.
type parts struct {
	cfg            Config
	settings       desired.Settings
	client         kubernetes.Interface
	runtime        *cri.Client
	kernel         *dataplane.Dataplane
	cluster, local informers.SharedInformerFactory
	recorder       record.EventRecorder
	metrics        *prometheus.Registry
}

// assemble makes every component of a node; none runs yet.
func assemble(cfg Config, settings desired.Settings, client kubernetes.Interface, runtime *cri.Client, kernel *dataplane.Dataplane) (components, error) {
	events := record.NewBroadcaster()
	p := parts{
		cfg: cfg, settings: settings, client: client, runtime: runtime, kernel: kernel,
		cluster: informers.NewSharedInformerFactory(client, 0),
		local: informers.NewSharedInformerFactoryWithOptions(client, 0,
			informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", cfg.NodeName).String()
			})),
		// The component is what tools that look for a node's events filter on.
		recorder: events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: cfg.NodeName}),
		metrics:  prometheus.NewRegistry(),
	}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), kernel)
	readiness := &readiness{}
	all, err := p.network(readiness)
	if err != nil {
		return nil, err
	}
	podSide, err := p.pods(readiness)
	if err != nil {
		return nil, err
	}
	all = append(all, podSide...)
	return append(all, component{"informers", func(ctx context.Context) error {
		events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
		defer events.Shutdown()
		p.cluster.Start(ctx.Done())
		p.local.Start(ctx.Done())
		<-ctx.Done()
		p.cluster.Shutdown()
		p.local.Shutdown()
		return nil
	}}), nil
}

// readiness is what a node's Ready condition rests on, the runtime aside. It is
// filled while components are made and not changed once they run.
type readiness struct {
	conditions []func() error
	wakeNode   func()
}

// changed has the node look again, if this installation keeps a Node object.
func (r *readiness) changed() {
	if r.wakeNode != nil {
		r.wakeNode()
	}
}

func (r *readiness) problem() error {
	for _, condition := range r.conditions {
		if err := condition(); err != nil {
			return err
		}
	}
	return nil
}

// network makes the components that every installation has.
func (p parts) network(readiness *readiness) (components, error) {
	network, err1 := network.New(network.Config{
		Settings: p.settings, Cluster: p.cluster, Dataplane: p.kernel,
		StateDir: p.cfg.StateDir, SocketPath: p.cfg.cniSocket(), DelDir: p.cfg.delDir(),
		OnReady: readiness.changed,
	})
	var listen []netip.AddrPort
	for _, addr := range p.settings.NodeAddresses {
		listen = append(listen, netip.AddrPortFrom(addr, api.DNSPort))
	}
	dns, err2 := dns.New(dns.Config{
		Cluster: p.cluster, Listen: listen, Domain: p.cfg.ClusterDomain, ClusterDNS: p.settings.ClusterDNS,
		Prefixes:   append(p.settings.ClusterCIDRs, p.settings.ServiceCIDRs...),
		ResolvConf: p.cfg.ResolvConf, Registerer: p.metrics,
	})
	ingress, err3 := ingress.New(ingress.Config{NodeName: p.cfg.NodeName, Client: p.client, Cluster: p.cluster, Registerer: p.metrics})
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	readiness.conditions = append(readiness.conditions, network.Ready)
	return components{{"network", network.Run}, {"dns", dns.Run}, {"ingress", ingress.Run}}, nil
}

// pods makes the components of a cluster of Weft's own: what kubelet does
// elsewhere.
func (p parts) pods(readiness *readiness) (components, error) {
	var manager *pods.Manager // wakes workers; set before anything runs
	capacity, err := p.cfg.capacity()
	if err != nil {
		return nil, err
	}
	thresholds, err := p.cfg.thresholds()
	if err != nil {
		return nil, err
	}
	node, err1 := node.New(node.Config{
		NodeName: p.cfg.NodeName, Addresses: p.settings.NodeAddresses, Labels: p.cfg.Labels,
		Port: api.KubeletPort, Capacity: capacity, Thresholds: thresholds, MaxPods: int64(p.cfg.MaxPods),
		Annotations: map[string]string{api.VolumesDirAnnotation: p.cfg.volumesDir()},
		StateDir:    p.cfg.StateDir, Version: p.cfg.Version, Ready: readiness.problem,
		DeclaredFeatures: []string{
			inplacepodresize.PodLevelResourcesResizeFeature.Name(), inplacepodresize.NonSidecarInitContainerResizeFeature.Name(),
		},
		Client: p.client, Cluster: p.cluster, Runtime: p.runtime.RuntimeService(), Images: p.runtime.ImageService(),
	})
	objects, err2 := volumes.NewObjects(volumes.ObjectsConfig{
		Client:  p.client,
		Changed: func(uid types.UID) { manager.ObjectsChanged(uid) },
	})
	nodes := p.cluster.Core().V1().Nodes().Lister()
	local, err := volumes.NewLocalDirs(p.cfg.volumesDir())
	if err != nil {
		return nil, err
	}
	mounts, err3 := volumes.New(volumes.Config{
		NodeName: p.cfg.NodeName, KubeletDir: p.cfg.kubeletDir(), Client: p.client, Objects: objects, Local: local,
		Allocatable: func() corev1.ResourceList {
			self, err := nodes.Get(p.cfg.NodeName)
			if err != nil {
				return nil
			}
			return self.Status.Allocatable
		},
		Pods: p.local.Core().V1().Pods().Informer(),
	})
	prober, err4 := probes.New(probes.Config{
		Exec:    p.runtime.ExecSync,
		Changed: func(uid types.UID) { manager.Changed(uid) },
		Event: func(pod *corev1.Pod, container, eventType, reason, message string) {
			manager.Event(pod, container, eventType, reason, message)
		},
	})
	reclaimer, err5 := volumes.NewReclaimer(volumes.ReclaimerConfig{
		NodeName: p.cfg.NodeName, Client: p.client, Dirs: local, Recorder: p.recorder,
	})
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return nil, err
	}
	manager, err = pods.New(pods.Config{
		NodeName: p.cfg.NodeName, NodeIPs: p.settings.NodeAddresses, Client: p.client,
		Local: p.local, Cluster: p.cluster, Runtime: p.runtime, Images: p.runtime,
		Volumes: mounts, Objects: objects, Prober: prober,
		KubeletDir: p.cfg.kubeletDir(), LogDir: p.cfg.logDir(), CgroupParent: p.cfg.Cgroup,
		ClusterDNS: p.settings.ClusterDNS, ClusterDomain: p.cfg.ClusterDomain, ResolvConf: p.cfg.ResolvConf,
		Pressure: func() (memory, disk bool) { now := node.Pressure(); return now.Memory, now.Disk },
		PodPids:  p.cfg.PodPIDs, Recorder: p.recorder, OnReady: readiness.changed, Log: slog.Default(),
	})
	if err != nil {
		return nil, err
	}
	readiness.conditions = append(readiness.conditions, manager.Ready)
	readiness.wakeNode = node.Wake
	reclaim, err := reclaim.New(reclaim.Config{
		Pressure: func() reclaim.Pressure {
			now := node.Pressure()
			return reclaim.Pressure{Memory: now.Memory, Disk: now.Disk}
		},
		Disk: reclaim.DiskOf(p.cfg.StateDir), Usage: reclaim.Measure(p.runtime.RuntimeService(), p.cfg.podFiles),
		Images: p.runtime, Containers: p.runtime, Pods: manager,
	})
	if err != nil {
		return nil, err
	}
	serving, err := join.ServingCertificate(join.ServingConfig{
		NodeName: p.cfg.NodeName, Dir: p.cfg.identityDir(), Client: p.client,
		Addresses: p.settings.NodeAddresses, Hostnames: []string{p.cfg.NodeName},
	})
	if err != nil {
		return nil, err
	}
	server, err := server.New(server.Config{
		NodeName: p.cfg.NodeName, Addresses: p.settings.NodeAddresses, Port: api.KubeletPort,
		Certificate: serving.GetCertificate, ClientCAFile: filepath.Join(p.cfg.identityDir(), "ca.crt"),
		Client: p.client, Pods: manager, Runtime: p.runtime.RuntimeService(),
		Metrics: p.metrics, StateDir: p.cfg.StateDir,
	})
	if err != nil {
		return nil, err
	}
	return components{
		{"node", node.Run}, {"objects", objects.Run}, {"volumes", mounts.Run}, {"volume reclaimer", reclaimer.Run}, {"pods", manager.Run}, {"reclaim", reclaim.Run},
		{"serving certificate", serving.Run}, {"server", server.Run},
		{"log rotation", (&logs.Rotator{Runtime: p.runtime.RuntimeService()}).Run},
	}, nil
}
