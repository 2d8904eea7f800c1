package cni

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"weft.dev/weft/cni/wire"
)

// agent serves handle on a Unix socket, as agent/network does.
func agent(t *testing.T, handle func(wire.Request) wire.Response) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cni.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wire.Path, func(w http.ResponseWriter, r *http.Request) {
		var req wire.Request
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		if err := json.NewEncoder(w).Encode(handle(req)); err != nil {
			t.Error(err)
		}
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return socket
}

// execute runs the plugin as a runtime would.
func plugin(env map[string]string, conf string) (exit int, stdout string) {
	var out bytes.Buffer
	exit = Run(Process{
		Getenv: func(name string) string { return env[name] },
		Stdin:  strings.NewReader(conf), Stdout: &out, Stderr: &bytes.Buffer{},
	})
	return exit, out.String()
}

func env(command string, more ...string) map[string]string {
	e := map[string]string{
		"CNI_COMMAND": command, "CNI_CONTAINERID": "abc123", "CNI_NETNS": "/run/netns/x",
		"CNI_IFNAME": "eth0", "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1",
	}
	for i := 0; i+1 < len(more); i += 2 {
		e[more[i]] = more[i+1]
	}
	return e
}

func conf(socket, more string) string {
	return `{"cniVersion":"1.1.0","name":"weft","type":"weft-cni","socket":"` + socket + `"` + more + `}`
}

func TestAddPassesTheRequestAndPrintsTheResult(t *testing.T) {
	var got wire.Request
	socket := agent(t, func(r wire.Request) wire.Response {
		got = r
		return wire.Response{Result: json.RawMessage(`{"cniVersion":"1.1.0","ips":[{"address":"10.244.0.2/32"}]}`)}
	})
	exit, out := plugin(env("ADD"), conf(socket, `,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]}`))
	if exit != 0 || strings.TrimSpace(out) != `{"cniVersion":"1.1.0","ips":[{"address":"10.244.0.2/32"}]}` {
		t.Fatalf("exit %d, stdout %s", exit, out)
	}
	if got.Command != "ADD" || got.ContainerID != "abc123" || got.Netns != "/run/netns/x" || got.IfName != "eth0" ||
		got.Args["K8S_POD_NAME"] != "web-1" || !strings.Contains(string(got.Config), "portMappings") {
		t.Errorf("the agent was asked %+v", got)
	}
}

func TestLargeAnswersArriveWhole(t *testing.T) {
	want := `{"x":"` + strings.Repeat("y", 1<<20) + `"}`
	socket := agent(t, func(wire.Request) wire.Response { return wire.Response{Result: json.RawMessage(want)} })
	if exit, out := plugin(env("ADD"), conf(socket, "")); exit != 0 || strings.TrimSpace(out) != want {
		t.Errorf("exit %d, %d bytes, want %d", exit, len(out), len(want))
	}
}

func TestVerbsWithoutResultPrintNothing(t *testing.T) {
	for _, verb := range []string{"DEL", "CHECK", "GC", "STATUS"} {
		socket := agent(t, func(wire.Request) wire.Response { return wire.Response{} })
		if exit, out := plugin(env(verb), conf(socket, "")); exit != 0 || out != "" {
			t.Errorf("%s: exit %d, stdout %q", verb, exit, out)
		}
	}
}

func TestVersionNeedsNoAgent(t *testing.T) {
	exit, out := plugin(map[string]string{"CNI_COMMAND": "VERSION"}, "")
	if exit != 0 || !strings.Contains(out, `"supportedVersions":["1.0.0","1.1.0"]`) {
		t.Errorf("exit %d, stdout %s", exit, out)
	}
}

func TestErrors(t *testing.T) {
	answering := agent(t, func(wire.Request) wire.Response {
		return wire.Response{Error: &wire.Error{Code: 11, Msg: "no address free", Details: "10.244.0.0/24"}}
	})
	gone := filepath.Join(t.TempDir(), "nobody.sock")
	for _, tt := range []struct {
		name string
		env  map[string]string
		conf string
		code uint
		says string
	}{
		{"the agent's error is passed on", env("ADD"), conf(answering, ""), 11, "no address free"},
		{"an absent agent asks ADD to try again later", env("ADD"), conf(gone, ""), 11, "try again later"},
		{"an absent agent asks GC to try again later", env("GC"), conf(gone, ""), 11, "try again later"},
		{"an absent agent makes STATUS not available", env("STATUS"), conf(gone, ""), 50, "does not answer"},
		{"DEL without agent and delDir is tried again", env("DEL"), conf(gone, ""), 11, "try again later"},
		{"a configuration that is no JSON", env("ADD"), "hello", 6, "stdin"},
		{"a configuration of the wrong form", env("ADD"), `{"cniVersion":5}`, 6, "cniVersion"},
		{"an old version", env("ADD"), `{"cniVersion":"0.2.0","name":"x"}`, 1, "cniVersion"},
		{"no name", env("ADD"), `{"cniVersion":"1.1.0","socket":"/x"}`, 7, "name:"},
		{"no socket", env("ADD"), `{"cniVersion":"1.1.0","name":"x"}`, 7, "socket:"},
		{"a relative socket", env("ADD"), conf("run/x", ""), 7, "absolute"},
		{"a relative delDir", env("ADD"), conf("/x", `,"delDir":"y"`), 7, "delDir"},
		{"an ipam section", env("ADD"), conf("/x", `,"ipam":{"type":"host-local"}`), 2, "ipam:"},
		{"not the first of a list", env("ADD"), conf("/x", `,"prevResult":{"cniVersion":"1.1.0"}`), 2, "prevResult:"},
		{"GC before 1.1", env("GC"), strings.Replace(conf("/x", ""), "1.1.0", "1.0.0", 1), 1, "no GC"},
		{"an unknown command", env("FLY"), conf("/x", ""), 4, "CNI_COMMAND"},
		{"no container ID", env("ADD", "CNI_CONTAINERID", ""), conf("/x", ""), 4, "CNI_CONTAINERID"},
		{"a container ID that climbs", env("DEL", "CNI_CONTAINERID", "../../etc"), conf("/x", ""), 4, "CNI_CONTAINERID"},
		{"no netns for ADD", env("ADD", "CNI_NETNS", ""), conf("/x", ""), 4, "CNI_NETNS"},
		{"a device name too long", env("ADD", "CNI_IFNAME", "eth0123456789012"), conf("/x", ""), 4, "CNI_IFNAME"},
		{"malformed arguments", env("ADD", "CNI_ARGS", "K8S_POD_NAME"), conf("/x", ""), 4, "CNI_ARGS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			exit, out := plugin(tt.env, tt.conf)
			var e struct {
				CNIVersion string
				wire.Error
			}
			if err := json.Unmarshal([]byte(out), &e); err != nil {
				t.Fatalf("stdout %q: %v", out, err)
			}
			if exit != 1 || e.Code != tt.code || !strings.Contains(e.Msg+e.Details, tt.says) {
				t.Errorf("exit %d, error %+v; want code %d saying %q", exit, e, tt.code, tt.says)
			}
			if e.CNIVersion == "" {
				t.Error("the error has no cniVersion")
			}
		})
	}
}

func TestDelWithoutAgentLeavesARecordAndSucceeds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "del")
	c := conf(filepath.Join(t.TempDir(), "nobody.sock"), `,"delDir":"`+dir+`"`)
	for range 2 { // runtimes call DEL twice
		if exit, out := plugin(env("DEL", "CNI_NETNS", ""), c); exit != 0 || out != "" {
			t.Fatalf("exit %d, stdout %s", exit, out)
		}
	}
	records, err := Records(dir)
	if err != nil || len(records) != 1 || records[0].ContainerID != "abc123" || records[0].IfName != "eth0" {
		t.Fatalf("records %+v, %v", records, err)
	}
	for range 2 {
		if err := RemoveRecord(dir, records[0]); err != nil {
			t.Fatal(err)
		}
	}
	if records, err := Records(dir); err != nil || len(records) != 0 {
		t.Errorf("after removal: %+v, %v", records, err)
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.0 200 OK\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.0 500 Oh\r\nX: y\r\n\r\n"))
	f.Fuzz(func(_ *testing.T, answer []byte) {
		_, _ = parseAnswer(answer) // must not panic
	})
}
