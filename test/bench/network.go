package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"weft.dev/weft/cmd/weft/progress"
)

// Where the server is, seen from the client.
var distances = []string{"same node", "other node"}

// path is one way from a client to a server.
type path struct {
	Network  string `json:"network"`  // weft, iptables or nftables
	Target   string `json:"target"`   // direct or ClusterIP
	Distance string `json:"distance"` // of distances
	client   place
	server   *process
	to       netip.AddrPort
}

// The targets of a path.
const (
	direct    = "direct"
	clusterIP = "ClusterIP"
)

// world is all that network measurements need: paths and what stands behind
// them.
type world struct {
	self      string
	paths     []path
	processes []*process
	plains    []*plain
	places    []place // in the cluster
	log       *os.File
}

// close ends what the world consists of, but for the cluster.
func (w *world) close() error {
	var errs []error
	for _, process := range w.processes {
		process.stop()
	}
	for _, p := range w.plains {
		errs = append(errs, p.close())
	}
	for _, p := range w.places {
		errs = append(errs, p.netns.Close())
	}
	return errors.Join(append(errs, w.log.Close())...)
}

// measureNetwork builds the world, measures it, and takes it down.
func measureNetwork(ctx context.Context, o options, c *cluster, display *progress.Display, results *Results) (err error) {
	w := &world{}
	if w.self, err = os.Executable(); err != nil {
		return err
	}
	if w.log, err = os.Create(filepath.Join(o.report, "servers.log")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	steps := []struct {
		what string
		do   func(say func(string)) error
	}{
		{"pods in the cluster", func(func(string)) error { return w.addCluster(ctx, c) }},
		{"idle Services", func(func(string)) error { return addIdleServices(ctx, c, o.services) }},
		{"plain nodes with kube-proxy", func(func(string)) error { return w.addPlains(ctx, o, c) }},
		{"every path answers", func(func(string)) error { return w.await(ctx) }},
		{"rules", func(say func(string)) (err error) {
			results.Rules, err = w.checkRules(o)
			return err
		}},
		{"network", func(say func(string)) (err error) {
			results.Network, err = w.measure(ctx, o, say)
			return err
		}},
	}
	for _, step := range steps {
		if err := display.Step(step.what, step.do); err != nil {
			return err
		}
	}
	return nil
}

// addCluster makes a client on the first node and a server on each.
func (w *world) addCluster(ctx context.Context, c *cluster) error {
	client, err := c.startPod(ctx, "client", "node-1")
	if err != nil {
		return err
	}
	from, err := c.placeOf(ctx, client)
	if err != nil {
		return err
	}
	w.places = append(w.places, from)
	for i, distance := range distances {
		pod, err := c.startPod(ctx, fmt.Sprintf("server-%d", i+1), fmt.Sprintf("node-%d", i+1))
		if err != nil {
			return err
		}
		at, err := c.placeOf(ctx, pod)
		if err != nil {
			return err
		}
		w.places = append(w.places, at)
		addr, err := netip.ParseAddr(pod.Status.PodIP)
		if err != nil {
			return err
		}
		if err := w.addServer(ctx, c, "weft", distance, from, at, addr); err != nil {
			return err
		}
	}
	return nil
}

// addPlains makes a plain topology for each mode of kube-proxy.
func (w *world) addPlains(ctx context.Context, o options, c *cluster) error {
	if err := linkLegacyIptables(o); err != nil {
		return err
	}
	for i, m := range modes {
		p, err := newPlain(c.bridge, c.subnet, byte(i+1))
		if err != nil {
			return err
		}
		w.plains = append(w.plains, p)
		proxies, err := startKubeProxy(ctx, o, c, p, m)
		w.processes = append(w.processes, proxies...)
		if err != nil {
			return err
		}
		for j, server := range p.servers {
			if err := w.addServer(ctx, c, m.name, distances[j], p.client, server.place, server.addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// addServer starts a server, gives it a Service, and adds the paths to both.
func (w *world) addServer(ctx context.Context, c *cluster, network, distance string, from, at place, addr netip.Addr) error {
	server, err := at.start(ctx, w.loader(w.log, w.log, "serve"))
	if err != nil {
		return fmt.Errorf("start a server: %w", err)
	}
	w.processes = append(w.processes, server)
	service, err := c.addService(ctx, fmt.Sprintf("%s-%d", network, len(w.paths)), addr)
	if err != nil {
		return err
	}
	w.paths = append(w.paths,
		path{Network: network, Target: direct, Distance: distance, client: from, server: server, to: netip.AddrPortFrom(addr, loadPort)},
		path{Network: network, Target: clusterIP, Distance: distance, client: from, server: server, to: netip.AddrPortFrom(service, loadPort)})
	return nil
}

// await returns when every path works with TCP and UDP.
func (w *world) await(ctx context.Context) error {
	for _, p := range w.paths {
		for _, test := range []string{tcpRR, udpRR} {
			what := fmt.Sprintf("%s, %s, %s, %s to %s", p.Network, p.Target, p.Distance, test, p.to)
			if err := eventually(ctx, 30*time.Second, what, func() error {
				load, err := w.load(ctx, p, test, time.Millisecond)
				if err == nil && load.Transactions == 0 {
					err = errors.New("no answer")
				}
				return err
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkRules returns the number of lines of rules on a client's node, by mode.
func (w *world) checkRules(o options) (map[string]int, error) {
	lines := map[string]int{}
	for i, m := range modes {
		for _, p := range w.paths {
			if p.Network != m.name || p.Target != clusterIP {
				continue
			}
			var err error
			if lines[m.name], err = checkRules(o, w.plains[i].nodes[0], m, p.to.Addr()); err != nil {
				return nil, err
			}
		}
	}
	return lines, nil
}

// plan lists what is to be measured.
func (w *world) plan(only *regexp.Regexp) []Series {
	var series []Series
	for _, test := range tests {
		for _, p := range w.paths {
			if only.MatchString(strings.Join([]string{test, p.Network, p.Target, p.Distance}, " ")) {
				series = append(series, Series{Test: test, path: p})
			}
		}
	}
	return series
}

// measure visits every path once a round, test by test, in a new order each
// time.
func (w *world) measure(ctx context.Context, o options, say func(string)) ([]Series, error) {
	series := w.plan(o.only)
	order := make([]int, len(series))
	for i := range order {
		order[i] = i
	}
	began := time.Now()
	for round := range o.rounds {
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for done, i := range order {
			s := &series[i]
			say(fmt.Sprintf("round %d of %d, %s left", round+1, o.rounds, left(began, round*len(order)+done, o.rounds*len(order))))
			load, err := w.load(ctx, s.path, s.Test, o.duration)
			if err != nil {
				return nil, fmt.Errorf("%s, %s, %s: %w", s.Network, s.Target, s.Distance, err)
			}
			s.Rounds = append(s.Rounds, load)
		}
	}
	say(fmt.Sprintf("%d rounds of %d", o.rounds, len(order)))
	return series, nil
}

// left estimates what remains when done of all steps took since began.
func left(began time.Time, done, all int) time.Duration {
	if done == 0 {
		return 0
	}
	return (time.Since(began) / time.Duration(done) * time.Duration(all-done)).Round(time.Second)
}

// loader is this program as client or server. The Go runtime must not
// interrupt its system calls with signals, and what else the machine does
// should disturb it little.
func (w *world) loader(stdout, stderr *os.File, args ...string) command {
	return command{
		path: w.self, args: args, env: []string{"GODEBUG=asyncpreemptoff=1"}, nice: -10,
		stdout: stdout, stderr: stderr,
	}
}

// load runs one client.
func (w *world) load(ctx context.Context, p path, test string, duration time.Duration) (Load, error) {
	before, err := cpuTime(p.server.cmd.Process.Pid)
	if err != nil {
		return Load{}, err
	}
	out, err := w.output(ctx, p.client, "load", "-test", test, "-to", p.to.String(), "-duration", duration.String())
	if err != nil {
		return Load{}, err
	}
	var load Load
	if err := json.Unmarshal(out, &load); err != nil {
		return Load{}, err
	}
	after, err := cpuTime(p.server.cmd.Process.Pid)
	if load.Transactions > 0 {
		load.CPU += microseconds(after-before) / float64(load.Transactions)
	}
	return load, err
}

// output runs this program at a place and returns what it prints.
func (w *world) output(ctx context.Context, at place, args ...string) ([]byte, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	errRead, errWrite, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	defer errRead.Close()
	child, err := at.start(ctx, w.loader(write, errWrite, args...))
	if err := errors.Join(err, write.Close(), errWrite.Close()); err != nil {
		return nil, err
	}
	out, outErr := io.ReadAll(read)
	said, saidErr := io.ReadAll(errRead)
	if err := <-child.done; err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(said))
	}
	return out, errors.Join(outErr, saidErr)
}
