package ingress

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/record"
)

// reportInterval is how often addresses are compared although no Ingress
// changed: nodes come and go.
const reportInterval = 5 * time.Second

// reporter writes status.loadBalancer and events. For each Ingress one of
// the ready nodes does, chosen by hash, so nodes do not fight; if they
// disagree for a moment about who is ready, both write the same.
type reporter struct {
	node   string
	client kubernetes.Interface
	nodes  corelisters.NodeLister
	events record.EventRecorder
	sink   record.EventBroadcaster
	log    *slog.Logger
	wake   chan struct{}

	mu       sync.Mutex
	ours     []*networkingv1.Ingress
	problems []Problem
	// told are problems that have their event already.
	told map[toldKey]bool
}

type toldKey struct {
	uid             types.UID
	reason, message string
}

func newReporter(cfg Config, nodes corelisters.NodeLister) *reporter {
	sink := record.NewBroadcaster()
	return &reporter{
		node: cfg.NodeName, client: cfg.Client, nodes: nodes, log: cfg.Log, sink: sink,
		events: sink.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "weft-ingress", Host: cfg.NodeName}),
		wake:   make(chan struct{}, 1),
		told:   map[toldKey]bool{},
	}
}

// report says what the last pass found.
func (r *reporter) report(ours []*networkingv1.Ingress, problems []Problem) {
	r.mu.Lock()
	r.ours, r.problems = ours, problems
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reporter) run(ctx context.Context) {
	r.sink.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: r.client.CoreV1().Events("")})
	defer r.sink.Shutdown()
	tick := time.NewTicker(reportInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.wake:
		}
		r.pass(ctx)
	}
}

func (r *reporter) pass(ctx context.Context) {
	r.mu.Lock()
	ours, problems := r.ours, r.problems
	r.mu.Unlock()
	nodes, err := r.nodes.List(labels.Everything())
	if err != nil {
		return
	}
	ready := readyNodes(nodes)
	for _, ingress := range ours {
		if reporterOf(ingress.UID, ready) != r.node {
			continue
		}
		if err := r.writeStatus(ctx, ingress, ready); err != nil && ctx.Err() == nil {
			r.log.Warn("ingress status not written", "ingress", ingress.Namespace+"/"+ingress.Name, "error", err)
		}
	}
	r.tell(problems, ready)
}

// tell makes an event of each problem that is new.
func (r *reporter) tell(problems []Problem, ready []*corev1.Node) {
	current := map[toldKey]bool{}
	for _, p := range problems {
		key := toldKey{p.Ingress.UID, p.Reason, p.Message}
		current[key] = true
		if !r.told[key] && reporterOf(p.Ingress.UID, ready) == r.node {
			r.events.Event(p.Ingress, corev1.EventTypeWarning, p.Reason, p.Message)
			r.told[key] = true
		}
	}
	maps.DeleteFunc(r.told, func(key toldKey, _ bool) bool { return !current[key] })
}

func (r *reporter) writeStatus(ctx context.Context, ingress *networkingv1.Ingress, ready []*corev1.Node) error {
	want := loadBalancer(ready)
	if reflect.DeepEqual(ingress.Status.LoadBalancer.Ingress, want) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": want}}})
	if err != nil {
		return err
	}
	_, err = r.client.NetworkingV1().Ingresses(ingress.Namespace).
		Patch(ctx, ingress.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// readyNodes returns the nodes that can serve, by name.
func readyNodes(nodes []*corev1.Node) []*corev1.Node {
	var ready []*corev1.Node
	for _, node := range nodes {
		isReady := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		if isReady && node.DeletionTimestamp == nil {
			ready = append(ready, node)
		}
	}
	slices.SortFunc(ready, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	return ready
}

// loadBalancer lists the internal addresses of nodes, sorted.
func loadBalancer(nodes []*corev1.Node) []networkingv1.IngressLoadBalancerIngress {
	var addresses []netip.Addr
	for _, node := range nodes {
		for _, address := range node.Status.Addresses {
			if ip, err := netip.ParseAddr(address.Address); err == nil && address.Type == corev1.NodeInternalIP {
				addresses = append(addresses, ip)
			}
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	var ingress []networkingv1.IngressLoadBalancerIngress
	for _, ip := range slices.Compact(addresses) {
		ingress = append(ingress, networkingv1.IngressLoadBalancerIngress{IP: ip.String()})
	}
	return ingress
}

// reporterOf returns the name of the node that reports on an Ingress: the one
// with the highest hash of both (rendezvous hashing), or "" without nodes.
func reporterOf(uid types.UID, ready []*corev1.Node) string {
	var best [sha256.Size]byte
	name := ""
	for _, node := range ready {
		sum := sha256.Sum256([]byte(node.Name + "/" + string(uid)))
		if name == "" || bytes.Compare(sum[:], best[:]) > 0 {
			best, name = sum, node.Name
		}
	}
	return name
}
