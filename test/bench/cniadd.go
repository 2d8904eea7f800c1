package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netns"

	"weft.dev/weft/cni/install"
	"weft.dev/weft/cni/wire"
)

// CNITimes are what CNI calls took, in milliseconds.
type CNITimes struct {
	Add     []float64 `json:"addMilliseconds"`     // the plugin, as a runtime runs it
	Process []float64 `json:"processMilliseconds"` // the plugin's process alone (VERSION)
	Agent   []float64 `json:"agentMilliseconds"`   // the same request straight to the agent
	Del     []float64 `json:"delMilliseconds"`
}

func (t CNITimes) print(w io.Writer) {
	printTimes(w, "CNI ADD on a node of the cluster", []timesRow{
		{"ADD, as a runtime calls it", t.Add},
		{"  the agent's part: address, device, programs, routes", t.Agent},
		{"  the plugin's process: start and end", t.Process},
		{"DEL", t.Del},
	})
}

// plugin calls weft-cni on the first node as a runtime would.
type plugin struct {
	path   string
	node   place
	config []byte // on stdin
	http   *http.Client
}

func newPlugin(o options, c *cluster) (*plugin, error) {
	text, err := os.ReadFile(c.nodeFile("node-1", "cni", "net.d", install.ConflistName))
	if err != nil {
		return nil, err
	}
	var list struct {
		CNIVersion, Name string
		Plugins          []map[string]any
	}
	if err := json.Unmarshal(text, &list); err != nil || len(list.Plugins) != 1 {
		return nil, fmt.Errorf("network configuration list of %d plugins, want 1: %w", len(list.Plugins), err)
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	p := &plugin{path: filepath.Join(o.bin, install.PluginName)}
	if p.config, err = json.Marshal(conf); err != nil {
		return nil, err
	}
	socket, _ := conf["socket"].(string)
	p.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // nor does the plugin
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	p.node.netns, err = netns.GetFromPath(filepath.Join("/run/netns", c.bridge+"-node-1"))
	return p, err
}

// exec runs the plugin in the node's namespace and returns how long that took.
func (p *plugin) exec(verb, id, ns string) (float64, error) {
	cmd := exec.Command(p.path)
	cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + ns, "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(p.path)}
	cmd.Stdin = bytes.NewReader(p.config)
	var out []byte
	began := time.Now()
	err := inside(p.node.netns, func() (err error) {
		out, err = cmd.Output()
		return err
	})
	took := milliseconds(time.Since(began))
	if err != nil {
		return 0, fmt.Errorf("CNI %s: %w: %s", verb, err, out)
	}
	return took, nil
}

// ask sends the same request to the agent without the plugin.
func (p *plugin) ask(ctx context.Context, verb, id, ns string) (float64, error) {
	body, err := json.Marshal(wire.Request{Command: verb, ContainerID: id, Netns: ns, IfName: "eth0", Config: p.config})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+wire.Path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer wire.Response
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, err
	}
	if answer.Error != nil {
		return 0, answer.Error
	}
	return milliseconds(time.Since(began)), nil
}

// measureCNI attaches new namespaces, by the plugin and straight at the agent
// in turn, and detaches them.
func measureCNI(ctx context.Context, o options, c *cluster, say func(string)) (times CNITimes, err error) {
	p, err := newPlugin(o, c)
	if err != nil {
		return times, err
	}
	defer func() { err = errors.Join(err, p.node.netns.Close()) }()
	for i := range o.adds {
		if err := ctx.Err(); err != nil {
			return times, err
		}
		say(fmt.Sprintf("%d of %d", i+1, o.adds))
		if err := p.round(ctx, i, &times); err != nil {
			return times, err
		}
	}
	return times, nil
}

func (p *plugin) round(ctx context.Context, i int, times *CNITimes) error {
	process, err := p.exec("VERSION", "", "")
	if err != nil {
		return err
	}
	var add, agent, del float64
	if err := p.withNamespace(func(id, ns string) (err error) {
		if add, err = p.exec("ADD", id, ns); err == nil {
			del, err = p.exec("DEL", id, ns)
		}
		return err
	}); err != nil {
		return err
	}
	if err := p.withNamespace(func(id, ns string) (err error) {
		if agent, err = p.ask(ctx, "ADD", id, ns); err == nil {
			_, err = p.ask(ctx, "DEL", id, ns)
		}
		return err
	}); err != nil {
		return err
	}
	times.Add, times.Process = append(times.Add, add), append(times.Process, process)
	times.Agent, times.Del = append(times.Agent, agent), append(times.Del, del)
	return nil
}

// withNamespace gives f a new container ID and namespace. The path works in
// the agent, too: it leads through this process.
func (p *plugin) withNamespace(f func(id, ns string) error) error {
	ns, err := newNetns()
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns))
	return errors.Join(f(fmt.Sprintf("bench-%d-%d", os.Getpid(), time.Now().UnixNano()), path), ns.Close())
}
