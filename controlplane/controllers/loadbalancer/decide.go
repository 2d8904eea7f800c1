package loadbalancer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/controlplane/api"
)

// Finalizer keeps a Service until its addresses are released
// (https://kubernetes.io/docs/tasks/access-application-cluster/create-external-load-balancer/#garbage-collecting-load-balancers).
const Finalizer = "service.kubernetes.io/load-balancer-cleanup"

// Reasons of events on Services.
const (
	reasonAssigned  = "LoadBalancerAddressAssigned"
	reasonNoPool    = "NoLoadBalancerPool"
	reasonExhausted = "LoadBalancerPoolExhausted"
	reasonNotInPool = "LoadBalancerAddressNotInPool"
	reasonInUse     = "LoadBalancerAddressInUse"
	reasonInvalid   = "InvalidLoadBalancerAddress"
)

// outcome is what becomes of one Service. It is wanted, whether it has been
// written already or not.
type outcome struct {
	Service *corev1.Service
	// Release says that the Service is to have no address, finalizer or
	// annotation of ours.
	Release bool
	// Addresses are those to have, in the order of the Service's families, and
	// Pools the names of theirs.
	Addresses []netip.Addr
	Pools     []string
	// Problem is why something that the Service asks for is missing, with the
	// reason of its event; empty if nothing is.
	Problem, Reason string
}

// isOurs reports whether a Service is to have addresses of a pool.
func isOurs(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.DeletionTimestamp == nil &&
		(svc.Spec.LoadBalancerClass == nil || *svc.Spec.LoadBalancerClass == api.LoadBalancerClass)
}

// isHeld reports whether this controller gave a Service addresses and has not
// released it since.
func isHeld(svc *corev1.Service) bool {
	_, isMarked := svc.Annotations[api.LoadBalancerPoolAnnotation]
	return isMarked
}

// decide says what every Service of ours is to have. An address stays with its
// Service as long as that wants it, also when no pool has it any more. Older
// Services go first, also where two have one address.
func decide(pools []*pool, services []*corev1.Service) []outcome {
	sorted := slices.SortedFunc(slices.Values(services), func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(nameOf(a), nameOf(b)))
	})
	taken := takenBy(sorted)
	var outcomes []outcome
	for _, svc := range sorted {
		switch {
		case isOurs(svc):
			a := allocation{pools: allowed(pools, svc), taken: taken, svc: svc}
			outcomes = append(outcomes, a.outcome())
		case isHeld(svc):
			outcomes = append(outcomes, outcome{Service: svc, Release: true})
		}
	}
	return outcomes
}

func nameOf(svc *corev1.Service) string { return svc.Namespace + "/" + svc.Name }

// takenBy says which Service has an address: the first that does.
func takenBy(sorted []*corev1.Service) map[netip.Addr]string {
	taken := map[netip.Addr]string{}
	for _, svc := range sorted {
		for _, addr := range append(current(svc), parse(svc.Spec.ExternalIPs)...) {
			if _, ok := taken[addr]; !ok {
				taken[addr] = nameOf(svc)
			}
		}
	}
	return taken
}

// current is the addresses in a Service's status.
func current(svc *corev1.Service) []netip.Addr {
	var texts []string
	for _, ingress := range svc.Status.LoadBalancer.Ingress {
		texts = append(texts, ingress.IP)
	}
	return parse(texts)
}

// parse leaves out what is no address.
func parse(texts []string) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}

// requested is the addresses that a Service asks for.
func requested(svc *corev1.Service) ([]netip.Addr, error) {
	field, text := "annotation "+api.LoadBalancerIPsAnnotation, svc.Annotations[api.LoadBalancerIPsAnnotation]
	if text == "" {
		field, text = "spec.loadBalancerIP", svc.Spec.LoadBalancerIP
	}
	if text == "" {
		return nil, nil
	}
	var addrs []netip.Addr
	for part := range strings.SplitSeq(text, ",") {
		addr, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%s: %q is not an address", field, part)
		}
		if !slices.Contains(families(svc), addr.Is4()) {
			return nil, fmt.Errorf("%s: %s is of a family that the Service does not have, see spec.ipFamilies", field, addr)
		}
		if i := family(addrs, addr.Is4()); i >= 0 {
			return nil, fmt.Errorf("%s: %s and %s are of one family", field, addrs[i], addr)
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// families are those of a Service, in its order; true is IPv4.
func families(svc *corev1.Service) []bool {
	var list []bool
	for _, f := range svc.Spec.IPFamilies {
		list = append(list, f == corev1.IPv4Protocol)
	}
	return list
}

// family returns the index of the first address of a family, or -1.
func family(addrs []netip.Addr, is4 bool) int {
	return slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == is4 })
}

func allowed(pools []*pool, svc *corev1.Service) []*pool {
	return slices.DeleteFunc(slices.Clone(pools), func(p *pool) bool { return !p.allows(svc) })
}

// allocation is the search for the addresses of one Service.
type allocation struct {
	pools []*pool // that it may use
	taken map[netip.Addr]string
	svc   *corev1.Service
}

func (a allocation) outcome() outcome {
	o := outcome{Service: a.svc}
	wanted, err := requested(a.svc)
	if err != nil {
		o.Problem, o.Reason = err.Error(), reasonInvalid
	}
	for _, is4 := range families(a.svc) {
		had := a.kept(is4)
		addr, problem := had, (*problem)(nil)
		if i := family(wanted, is4); i >= 0 {
			addr, problem = a.request(wanted[i])
		} else if !had.IsValid() && err == nil {
			addr, problem = a.any(is4)
		}
		if problem != nil && o.Problem == "" && !a.isOptional(problem, o.Addresses) {
			o.Problem, o.Reason = problem.text, problem.reason
		}
		if !addr.IsValid() {
			addr = had // better than none until the request can be met
		}
		if addr.IsValid() {
			a.taken[addr] = nameOf(a.svc)
			o.Addresses = append(o.Addresses, addr)
		}
	}
	if isDualStackRequired(a.svc) && len(o.Addresses) < 2 && len(current(a.svc)) == 0 {
		for _, addr := range o.Addresses {
			delete(a.taken, addr)
		}
		o.Addresses = nil // no half of what needs both
	}
	o.Pools = a.poolsOf(o.Addresses)
	return o
}

func isDualStackRequired(svc *corev1.Service) bool {
	return svc.Spec.IPFamilyPolicy != nil && *svc.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack
}

// kept returns the Service's present address of a family, if no older Service
// has it, too.
func (a allocation) kept(is4 bool) netip.Addr {
	for _, addr := range current(a.svc) {
		if addr.Is4() == is4 && a.taken[addr] == nameOf(a.svc) {
			return addr
		}
	}
	return netip.Addr{}
}

// isOptional reports whether a Service has what it asks for also without the
// address that there is no pool for.
func (a allocation) isOptional(p *problem, have []netip.Addr) bool {
	return p.reason == reasonNoPool && len(have) > 0 && !isDualStackRequired(a.svc)
}

// problem is why an address cannot be had, with the reason of the event.
type problem struct{ reason, text string }

func problemf(reason, format string, args ...any) *problem {
	return &problem{reason, fmt.Sprintf(format, args...)}
}

// request returns addr if the Service can have it.
func (a allocation) request(addr netip.Addr) (netip.Addr, *problem) {
	owner, isTaken := a.taken[addr]
	switch {
	case isTaken && owner == nameOf(a.svc) && slices.Contains(current(a.svc), addr):
		return addr, nil
	case isTaken:
		return netip.Addr{}, problemf(reasonInUse, "The requested address %s is in use by Service %s", addr, owner)
	case !slices.ContainsFunc(a.pools, func(p *pool) bool { return p.contains(addr) }):
		return netip.Addr{}, problemf(reasonNotInPool, "The requested address %s is in no LoadBalancerPool that this Service may use", addr)
	}
	return addr, nil
}

// any returns a free address of a family.
func (a allocation) any(is4 bool) (netip.Addr, *problem) {
	name := map[bool]string{true: "IPv4", false: "IPv6"}[is4]
	var full []string
	for _, p := range a.pools {
		if addr, ok := p.free(is4, a.taken); ok {
			return addr, nil
		}
		if p.hasFamily(is4) {
			full = append(full, p.name)
		}
	}
	if len(full) > 0 {
		return netip.Addr{}, problemf(reasonExhausted, "No %s address is left in LoadBalancerPool %s; add addresses to it or delete Services that need none", name, strings.Join(full, ", "))
	}
	return netip.Addr{}, problemf(reasonNoPool, "There is no LoadBalancerPool with %s addresses that this Service may use; make one, or give the Service another spec.loadBalancerClass", name)
}

// poolsOf names the pools that hold the addresses, sorted and once each.
func (a allocation) poolsOf(addrs []netip.Addr) []string {
	var names []string
	for _, addr := range addrs {
		for _, p := range a.pools {
			if p.contains(addr) && !slices.Contains(names, p.name) {
				names = append(names, p.name)
				break
			}
		}
	}
	slices.Sort(names)
	return names
}
