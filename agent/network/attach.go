package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"weft.dev/weft/agent/desired"
	"weft.dev/weft/agent/ipam"
	"weft.dev/weft/cni"
	"weft.dev/weft/cni/wire"
	"weft.dev/weft/dataplane/pod"
	"weft.dev/weft/dataplane/service"
)

// add attaches a sandbox: address, record, Apply, answer. It fails closed: what
// is not complete in time is taken back.
func (n *Network) add(ctx context.Context, req wire.Request, conf wire.NetConf) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()
	if err := n.checkNetns(req.Netns); err != nil {
		return nil, err
	}
	hostPorts, err := parsePortMappings(conf.RuntimeConfig.PortMappings)
	if err != nil {
		return nil, err
	}
	select {
	case <-n.ready:
	case <-ctx.Done():
		return nil, tryAgain("the node has no pod CIDR yet, or the API server has not been reached", ctx.Err())
	}
	n.workOffRecords()
	s, done, err := n.admit(req, hostPorts)
	if err != nil {
		return nil, err
	}
	if err := n.await(ctx, done); err != nil {
		n.leave(s.SandboxID)
		return nil, tryAgain("the pod's network could not be set up on node "+n.cfg.NodeName, err)
	}
	return n.result(s.Sandbox, conf.CNIVersion), nil
}

// checkNetns refuses what would hit the node instead of a pod.
func (n *Network) checkNetns(path string) error {
	switch {
	case !n.devices.IsNetns(path):
		return &wire.Error{Code: codeInvalidEnvironment, Msg: fmt.Sprintf("CNI_NETNS: %q is not a network namespace", path)}
	case n.devices.IsOwnNetns(path):
		return &wire.Error{Code: codeInvalidEnvironment, Msg: fmt.Sprintf("CNI_NETNS: %q is the node's own network namespace", path)}
	}
	return nil
}

// admit gives the sandbox its addresses and makes it part of what is wanted.
// The same ADD again, after one that the runtime lost, gets the same sandbox.
func (n *Network) admit(req wire.Request, hostPorts []desired.HostPort) (record, <-chan error, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	have, ok := n.sandboxes[req.ContainerID]
	switch {
	case ok && have.Leaving:
		return record{}, nil, &wire.Error{Code: codeTryAgainLater, Msg: "the sandbox's last attachment is still being removed"}
	case ok && (have.IfName != req.IfName || have.Netns != req.Netns):
		return record{}, nil, &wire.Error{Code: codeInvalidEnvironment, Msg: fmt.Sprintf(
			"CNI_CONTAINERID: %s is attached as %s in %s already; Weft attaches a sandbox once", req.ContainerID, have.IfName, have.Netns)}
	case ok:
		return have.record, n.changed(have, false), nil
	}
	if err := n.hostPortsFree(hostPorts); err != nil {
		return record{}, nil, err
	}
	r := record{Sandbox: desired.Sandbox{
		Pod: pod.Pod{
			Name: podName(req), SandboxID: req.ContainerID,
			Netns: req.Netns, IfName: req.IfName, HostIfName: hostIfName(req.ContainerID, req.IfName),
		},
		HostPorts: hostPorts,
	}}
	s := &sandbox{record: r}
	var err error
	if s.Addrs, err = n.pool.Reserve(s.owner()); err != nil {
		return record{}, nil, tryAgain("no address for the pod", err)
	}
	if err := n.store.save(s.record); err != nil {
		return record{}, nil, errors.Join(fmt.Errorf("record sandbox: %w", err), n.pool.Release(s.owner()))
	}
	n.sandboxes[s.SandboxID] = s
	return s.record, n.changed(s, false), nil
}

// changed counts a change of s and returns where its pass will report. The
// caller holds n.mu.
func (n *Network) changed(s *sandbox, isRemoval bool) <-chan error {
	n.changes++
	s.change = n.changes
	w := waiter{sandboxID: s.SandboxID, change: s.change, isRemoval: isRemoval, done: make(chan error, 1)}
	n.waiters = append(n.waiters, w)
	wake(n.urgent)
	return w.done
}

// await returns what the pass reports. When time is up it says what held the
// pass up, if that is known.
func (n *Network) await(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		n.mu.Lock()
		defer n.mu.Unlock()
		return errors.Join(ctx.Err(), n.lastErr)
	}
}

// leave stops wanting a sandbox. The loop takes it out of the kernel and then
// frees its addresses; the record survives a crash in between.
func (n *Network) leave(sandboxID string) (<-chan error, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, ok := n.sandboxes[sandboxID]
	if !ok {
		gone := make(chan error, 1)
		gone <- nil
		return gone, nil
	}
	if !s.Leaving {
		s.Leaving = true
		if err := n.store.save(s.record); err != nil {
			s.Leaving = false
			return nil, fmt.Errorf("record that sandbox %s leaves: %w", sandboxID, err)
		}
	}
	return n.changed(s, true), nil
}

// del detaches a sandbox. It succeeds as soon as the sandbox is recorded as
// leaving: waiting for the kernel is a courtesy, so that the device is gone
// before the namespace is. Unknown sandboxes are gone already.
func (n *Network) del(ctx context.Context, req wire.Request) error {
	n.mu.Lock()
	s, ok := n.sandboxes[req.ContainerID]
	isOther := ok && s.IfName != req.IfName
	n.mu.Unlock()
	if isOther {
		return nil
	}
	done, err := n.leave(req.ContainerID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, delTimeout)
	defer cancel()
	if err := n.await(ctx, done); err != nil {
		n.log.Info("the sandbox is detached later", "sandbox", req.ContainerID, "reason", err)
	}
	return nil
}

// workOffRecords carries out the DELs that the plugin recorded while no agent
// answered. The records go once the sandboxes are recorded as leaving.
func (n *Network) workOffRecords() {
	records, err := cni.Records(n.cfg.DelDir)
	if err != nil {
		n.log.Warn("some DEL records cannot be read", "dir", n.cfg.DelDir, "error", err)
	}
	for _, req := range records {
		if _, err := n.leave(req.ContainerID); err != nil {
			n.log.Warn("DEL record is tried again", "sandbox", req.ContainerID, "error", err)
			continue
		}
		if err := cni.RemoveRecord(n.cfg.DelDir, req); err != nil {
			n.log.Warn("DEL record cannot be removed", "sandbox", req.ContainerID, "error", err)
		}
	}
}

// gc detaches all sandboxes that the runtime does not know (CNI specification
// 1.1, "GC"), and frees addresses that no sandbox has.
func (n *Network) gc(ctx context.Context, valid []wire.Attachment) error {
	n.workOffRecords()
	isValid := map[wire.Attachment]bool{}
	for _, a := range valid {
		isValid[a] = true
	}
	n.mu.Lock()
	var stale []string
	for id, s := range n.sandboxes {
		if !isValid[wire.Attachment{ContainerID: id, IfName: s.IfName}] {
			stale = append(stale, id)
		}
	}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()
	var errs []error
	for _, id := range stale {
		done, err := n.leave(id)
		if err == nil {
			err = n.await(ctx, done)
		}
		errs = append(errs, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return errors.Join(append(errs, n.pool.Collect(func(o ipam.Owner) bool {
		s, ok := n.sandboxes[o.SandboxID]
		return ok && s.IfName == o.IfName
	}))...)
}

// hostIfName names the node's end of a sandbox's device: stable, and within
// IFNAMSIZ.
func hostIfName(sandboxID, ifName string) string {
	sum := sha256.Sum256([]byte(sandboxID + "/" + ifName))
	return "weft" + hex.EncodeToString(sum[:])[:11]
}

// parsePortMappings checks the portMappings capability; errors name the field.
func parsePortMappings(mappings []wire.PortMapping) ([]desired.HostPort, error) {
	var ports []desired.HostPort
	for i, m := range mappings {
		if m.HostPort == 0 { // the runtime lists container ports without a host port, too
			continue
		}
		hp := desired.HostPort{HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort)}
		field := fmt.Sprintf("runtimeConfig.portMappings[%d]", i)
		switch {
		case int32(hp.HostPort) != m.HostPort:
			return nil, invalidConfig("%s.hostPort: %d is not a port", field, m.HostPort)
		case int32(hp.ContainerPort) != m.ContainerPort || m.ContainerPort == 0:
			return nil, invalidConfig("%s.containerPort: %d is not a port", field, m.ContainerPort)
		}
		var ok bool
		if hp.Protocol, ok = protocols[strings.ToLower(m.Protocol)]; !ok {
			return nil, invalidConfig("%s.protocol: %q is none of tcp, udp, sctp", field, m.Protocol)
		}
		if m.HostIP != "" {
			addr, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return nil, invalidConfig("%s.hostIP: %q is not an IP address", field, m.HostIP)
			}
			hp.HostIP = addr.Unmap()
		}
		ports = append(ports, hp)
	}
	return ports, nil
}

var protocols = map[string]service.Protocol{"tcp": service.TCP, "udp": service.UDP, "sctp": service.SCTP}

func invalidConfig(format string, args ...any) error {
	return &wire.Error{Code: codeInvalidConfig, Msg: fmt.Sprintf(format, args...)}
}

// hostPortsFree refuses a host port that another sandbox has; the scheduler
// prevents that, but pods bound to a node by hand get around it. The caller
// holds n.mu.
func (n *Network) hostPortsFree(ports []desired.HostPort) error {
	for _, p := range ports {
		for _, s := range n.sandboxes {
			for _, q := range s.HostPorts {
				if !s.Leaving && p.HostPort == q.HostPort && p.Protocol == q.Protocol && overlaps(p.HostIP, q.HostIP) {
					return &wire.Error{Code: codeTryAgainLater, Msg: fmt.Sprintf("host port %d is taken by pod %s", p.HostPort, s.Name)}
				}
			}
		}
	}
	return nil
}

func overlaps(a, b netip.Addr) bool {
	isAll := func(x netip.Addr) bool { return !x.IsValid() || x.IsUnspecified() }
	return a == b || isAll(a) || isAll(b)
}
