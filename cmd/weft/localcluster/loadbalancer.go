package localcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/controlplane/api"
)

// poolName is the LoadBalancerPool of a local cluster.
const poolName = "default"

// loadBalancerPrefix is the part of the cluster's network that is for Services
// of type LoadBalancer: its upper half. Nodes are in the lower.
func (c *Cluster) loadBalancerPrefix() netip.Prefix {
	addr := c.Subnet.Addr().As4()
	addr[3] |= 0x80
	return netip.PrefixFrom(netip.AddrFrom4(addr), c.Subnet.Bits()+1)
}

// loadBalancerAddresses are those of the prefix without the last, on which the
// host's bridge broadcasts.
func (c *Cluster) loadBalancerAddresses() string {
	first := c.loadBalancerPrefix().Addr()
	last := first.As4()
	last[3] = 254
	return fmt.Sprintf("%s-%s", first, netip.AddrFrom4(last))
}

// ensureLoadBalancerRoute sends what the host has for these addresses to the
// nodes, each of which answers for all of them. The route is on the cluster's
// bridge and goes with it.
func (c *Cluster) ensureLoadBalancerRoute() error {
	bridge, err := netlink.LinkByName(c.bridge())
	if err != nil {
		return err
	}
	route := &netlink.Route{Dst: ipNet(c.loadBalancerPrefix())}
	for _, node := range c.AllNodes() {
		route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{LinkIndex: bridge.Attrs().Index, Gw: node.Addr.AsSlice()})
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s to the nodes: %w", c.loadBalancerPrefix(), err)
	}
	return nil
}

// upPool makes the cluster's LoadBalancerPool if it is missing; it is the
// user's to change.
func (c *Cluster) upPool(ctx context.Context, _ string, say func(string)) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	r := api.LoadBalancerPools
	pool, err := json.Marshal(api.LoadBalancerPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: r.GroupVersion().String(), Kind: "LoadBalancerPool"},
		ObjectMeta: metav1.ObjectMeta{Name: poolName},
		Spec:       api.LoadBalancerPoolSpec{Addresses: []string{c.loadBalancerAddresses()}},
	})
	if err != nil {
		return err
	}
	err = poll(ctx, func() error {
		_, err := client.Discovery().RESTClient().Post().AbsPath("/apis", r.Group, r.Version, r.Resource).Body(pool).DoRaw(ctx)
		switch {
		case apierrors.IsAlreadyExists(err):
			return nil
		case apierrors.IsNotFound(err):
			return errors.New("the API server does not serve LoadBalancerPools yet")
		}
		return err
	})
	if err == nil {
		say(c.loadBalancerAddresses())
	}
	return err
}
