package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
)

func TestAnswers(t *testing.T) {
	w := newWorld(t)
	for name, test := range map[string]struct {
		path string
		code int
		body string // a part of it
	}{
		"health":                                {"/healthz", 200, "ok"},
		"pods":                                  {"/pods", 200, `"kind":"PodList"`},
		"log of a running container":            {"/containerLogs/default/web/app", 200, "app\n"},
		"log of an ephemeral container":         {"/containerLogs/default/web/debug", 200, "debug\n"},
		"log while waiting for a restart":       {"/containerLogs/default/web/old", 200, "old second\n"},
		"previous while waiting for a restart":  {"/containerLogs/default/web/old?previous=true", 200, "old second\n"},
		"previous of the first instance":        {"/containerLogs/default/web/app?previous=true", 400, `previous terminated container "app" in pod "web" not found`},
		"log before the first start":            {"/containerLogs/default/web/new", 400, "is waiting to start: ContainerCreating"},
		"following an instance that has ended":  {"/containerLogs/default/web/old?follow=true", 200, "old second\n"},
		"an unknown pod":                        {"/containerLogs/default/nope/app", 404, `pod "nope" does not exist`},
		"an unknown container":                  {"/containerLogs/default/web/nope", 404, `container "nope" not found`},
		"a bad number of lines":                 {"/containerLogs/default/web/app?tailLines=x", 400, "tailLines"},
		"a negative number of lines":            {"/containerLogs/default/web/app?tailLines=-1", 400, "at least 0"},
		"two ways to say since":                 {"/containerLogs/default/web/app?sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422, "at most one of"},
		"one stream":                            {"/containerLogs/default/web/app?stream=Stdout&timestamps=true", 200, "2026-01-01T00:00:01.000000000Z app\n"},
		"an unknown stream":                     {"/containerLogs/default/web/app?stream=x", 400, "All, Stdout or Stderr"},
		"exec without streams":                  {"/exec/default/web/app?command=ls", 400, "at least 1 of"},
		"exec without a command":                {"/exec/default/web/app?output=1", 400, "command"},
		"exec in a container that is not there": {"/exec/default/web/new?output=1&command=ls", 404, "container not found"},
		"a pod of another UID":                  {"/exec/default/web/uid-other/app?output=1&command=ls", 404, "does not exist"},
		"the statistics of pods":                {"/stats/summary", 200, `"podRef":{"name":"web","namespace":"default","uid":"uid-web"}`},
		"no statistics of ended containers":     {"/stats/summary", 200, `"containers":[{"name":"app"`},
		"resource metrics":                      {"/metrics/resource", 200, "container_cpu_usage_seconds_total{container=\"app\",namespace=\"default\",pod=\"web\"} 3\n"},
		"resource metrics of pods":              {"/metrics/resource", 200, "pod_memory_working_set_bytes{namespace=\"default\",pod=\"web\"} 500\n"},
		"resource metrics of the machine":       {"/metrics/resource", 200, "node_cpu_usage_seconds_total "},
		"metrics of the process":                {"/metrics", 200, "go_goroutines "},
		"an unknown path":                       {"/nope", 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			code, body := w.get(t, test.path)
			if code != test.code || !strings.Contains(body, test.body) {
				t.Errorf("%d %.2000q, want %d with %q", code, body, test.code, test.body)
			}
		})
	}
}

// stranger has no certificate and believes any server.
func stranger() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
}

func TestAccessFailsClosed(t *testing.T) {
	for name, test := range map[string]struct {
		method, token, path string
		grants              []string
		down                bool
		want                int
	}{
		"nobody":                                    {"GET", "", "/healthz", nil, false, 401},
		"a wrong token":                             {"GET", "wrong", "/healthz", nil, false, 401},
		"a token without rights":                    {"GET", "t", "/healthz", nil, false, 403},
		"a token while the API server is away":      {"GET", "t", "/healthz", []string{"robot get healthz"}, true, 401},
		"the fine-grained right":                    {"GET", "t", "/healthz", []string{"robot get healthz"}, false, 200},
		"the coarse right":                          {"GET", "t", "/healthz", []string{"robot get proxy"}, false, 200},
		"a right to something else":                 {"GET", "t", "/pods", []string{"robot get healthz", "robot get stats"}, false, 403},
		"metrics with their own right":              {"GET", "t", "/metrics", []string{"robot get metrics"}, false, 200},
		"metrics with the coarse right alone":       {"GET", "t", "/metrics", []string{"robot get proxy"}, false, 403},
		"statistics with their own right":           {"GET", "t", "/stats/summary", []string{"robot get stats"}, false, 200},
		"exec with the right to read":               {"GET", "t", "/exec/default/web/app?output=1&command=ls", []string{"robot get proxy"}, false, 403},
		"run with the right to read":                {"POST", "t", "/run/default/web/app?cmd=ls", []string{"robot get proxy"}, false, 403},
		"run with the right to create":              {"POST", "t", "/run/default/web/app?cmd=ls", []string{"robot create proxy"}, false, 200},
		"an unknown path is not shown to strangers": {"GET", "", "/nope", nil, false, 401},
		"an unknown path needs a right":             {"GET", "t", "/nope", nil, false, 403},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.allow(test.grants...)
			w.down = test.down
			request, err := http.NewRequest(test.method, w.http.URL+test.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if test.token != "" {
				request.Header.Set("Authorization", "Bearer "+test.token)
			}
			response, err := stranger().Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != test.want {
				t.Errorf("%s, want %d", response.Status, test.want)
			}
		})
	}
}

func TestFollowedLogArrivesLineByLineAndEndsWithTheContainer(t *testing.T) {
	w := newWorld(t)
	response, err := w.http.Client().Get(w.http.URL + "/containerLogs/default/web/app?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	log, err := os.OpenFile(filepath.Join(w.dir, "app/0.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"app\n", "more\n", "and more\n"} {
		got, err := lines.ReadString('\n')
		if err != nil || got != want {
			t.Fatalf("%q, %v; want %q", got, err, want)
		}
		fmt.Fprintf(log, "2026-01-01T00:00:02Z stdout F %s\n", map[string]string{"app\n": "more", "more\n": "and more", "and more\n": "end"}[want])
	}
	w.exit()
	log.Close()
	if rest, err := io.ReadAll(lines); err != nil || string(rest) != "end\n" {
		t.Errorf("%q, %v", rest, err)
	}
}

// restConfig is a client of the node API itself, as "admin".
func (w *world) restConfig(t *testing.T) *rest.Config {
	t.Helper()
	w.allow("robot create proxy")
	return &rest.Config{Host: w.http.URL, BearerToken: "t", TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func (w *world) stream(t *testing.T, path string, options remotecommand.StreamOptions) {
	t.Helper()
	target, err := url.Parse(w.http.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	executor, err := remotecommand.NewSPDYExecutor(w.restConfig(t), http.MethodPost, target)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := executor.StreamWithContext(ctx, options); err != nil {
		t.Fatal(err)
	}
}

func TestExecJoinsAllStreams(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/exec/default/web/app", "/exec/default/web/uid-web/app"} {
		var out, errOut bytes.Buffer
		w.stream(t, path+"?command=cat&command=-&input=1&output=1&error=1",
			remotecommand.StreamOptions{Stdin: strings.NewReader("typed"), Stdout: &out, Stderr: &errOut})
		if out.String() != "c-app [cat -] tty=false typed" || errOut.String() != "to stderr" {
			t.Errorf("%s: %q and %q", path, out.String(), errOut.String())
		}
	}
}

func TestExecWithTerminalHasNoStderr(t *testing.T) {
	w := newWorld(t)
	var out bytes.Buffer
	w.stream(t, "/exec/default/web/debug?command=sh&input=1&output=1&error=1&tty=1",
		remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &out, Tty: true})
	if out.String() != "c-debug [sh] tty=true " {
		t.Errorf("%q", out.String())
	}
}

func TestAttach(t *testing.T) {
	w := newWorld(t)
	var out bytes.Buffer
	w.stream(t, "/attach/default/web/app?output=1", remotecommand.StreamOptions{Stdout: &out})
	if out.String() != "hello from c-app" {
		t.Errorf("%q", out.String())
	}
}

func TestPortForward(t *testing.T) {
	w := newWorld(t)
	target, err := url.Parse(w.http.URL + "/portForward/default/web")
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(w.restConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	stop, ready := make(chan struct{}), make(chan struct{})
	defer close(stop)
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		t.Fatal(err)
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "ping")
	if answer, err := io.ReadAll(conn); err != nil || string(answer) != "s-web:8080 ping" {
		t.Errorf("%q, %v", answer, err)
	}
}

func TestRunServesUntilTheContextEnds(t *testing.T) {
	w := newWorld(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.server.cfg.Port = listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.server.Run(ctx) }()
	address := fmt.Sprintf("https://127.0.0.1:%d/healthz", w.server.cfg.Port)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		response, err := stranger().Get(address)
		if err == nil {
			response.Body.Close()
			if response.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s for a caller without credentials", response.Status)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	_, err := New(Config{})
	for _, want := range []string{"node name", "address", "certificate", "client CA", "pods", "runtime"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %q", err, want)
		}
	}
}
