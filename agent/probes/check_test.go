package probes

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/probe"
)

func noExec(context.Context, string, []string, time.Duration) (int, []byte, error) {
	return 0, nil, nil
}

func portOf(t *testing.T, address string) int32 {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return int32(n)
}

func httpServer(t *testing.T, useTLS bool) int32 {
	t.Helper()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
		case "/slow":
			time.Sleep(2 * time.Second)
		case "/away":
			http.Redirect(w, r, "http://example.invalid/", http.StatusFound)
		case "/here":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/echo":
			if r.Header.Get("X-Token") != "t" || r.Host != "app.example" || !strings.HasPrefix(r.UserAgent(), "kube-") {
				http.Error(w, "wrong request", http.StatusTeapot)
			}
		default:
			http.Error(w, "secret body", http.StatusInternalServerError)
		}
	})
	server := httptest.NewUnstartedServer(handler)
	if useTLS {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return portOf(t, u.Host)
}

func TestHTTPChecks(t *testing.T) {
	plain, secure := httpServer(t, false), httpServer(t, true)
	container := corev1.Container{Name: "app", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: plain}}}
	for name, test := range map[string]struct {
		action corev1.HTTPGetAction
		want   probe.Result
		output string
		err    string
	}{
		"status 200 passes":                     {corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt32(plain)}, probe.Success, "", ""},
		"a named port is looked up":             {corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("web")}, probe.Success, "", ""},
		"an unknown port name is an error":      {corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("api")}, probe.Unknown, "", `port "api" not found`},
		"HTTPS does not verify the certificate": {corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt32(secure), Scheme: "HTTPS"}, probe.Success, "", ""},
		"status 500 fails without the body":     {corev1.HTTPGetAction{Path: "/bad", Port: intstr.FromInt32(plain)}, probe.Failure, "HTTP probe failed with statuscode: 500", ""},
		"a redirect to itself is followed":      {corev1.HTTPGetAction{Path: "/here", Port: intstr.FromInt32(plain)}, probe.Success, "", ""},
		"a redirect elsewhere is a warning":     {corev1.HTTPGetAction{Path: "/away", Port: intstr.FromInt32(plain)}, probe.Warning, "Probe terminated redirects", ""},
		"no answer in time fails":               {corev1.HTTPGetAction{Path: "/slow", Port: intstr.FromInt32(plain)}, probe.Failure, "context deadline exceeded", ""},
		"headers and host are sent": {corev1.HTTPGetAction{Path: "/echo", Port: intstr.FromInt32(plain), HTTPHeaders: []corev1.HTTPHeader{
			{Name: "X-Token", Value: "t"}, {Name: "Host", Value: "app.example"}}}, probe.Success, "", ""},
		"host overrides the pod's address": {corev1.HTTPGetAction{Path: "/ok", Host: "127.0.0.2", Port: intstr.FromInt32(1)}, probe.Failure, "127.0.0.2:1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &corev1.Probe{TimeoutSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &test.action}}
			target := Target{Pod: &corev1.Pod{}, Container: container, PodIP: "127.0.0.1"}
			got, output, err := newChecker(noExec).run(t.Context(), spec, target)
			if got != test.want || !strings.Contains(output, test.output) || strings.Contains(output, "secret body") {
				t.Errorf("got %s %q, want %s %q", got, output, test.want, test.output)
			}
			if (err == nil) != (test.err == "") || err != nil && err.Error() != test.err {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}

func TestTCPChecks(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := portOf(t, listener.Addr().String())
	spec := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}}}
	target := Target{Pod: &corev1.Pod{}, PodIP: "127.0.0.1"}
	if got, output, err := newChecker(noExec).run(t.Context(), spec, target); got != probe.Success || err != nil {
		t.Errorf("an open port gives %s %q %v", got, output, err)
	}
	listener.Close()
	if got, output, err := newChecker(noExec).run(t.Context(), spec, target); got != probe.Failure || !strings.Contains(output, "refused") || err != nil {
		t.Errorf("a closed port gives %s %q %v", got, output, err)
	}
}

func TestGRPCChecks(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, states := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(server, states)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	states.SetServingStatus("db", healthpb.HealthCheckResponse_NOT_SERVING)

	for service, want := range map[string]probe.Result{"": probe.Success, "db": probe.Failure, "unknown": probe.Failure} {
		action := &corev1.GRPCAction{Port: portOf(t, listener.Addr().String()), Service: &service}
		spec := &corev1.Probe{TimeoutSeconds: 5, ProbeHandler: corev1.ProbeHandler{GRPC: action}}
		got, output, err := newChecker(noExec).run(t.Context(), spec, Target{Pod: &corev1.Pod{}, PodIP: "127.0.0.1"})
		if got != want || err != nil {
			t.Errorf("service %q gives %s %q %v, want %s", service, got, output, err, want)
		}
	}
}

func TestCommandsSeeLiteralEnvironmentOnly(t *testing.T) {
	env := []corev1.EnvVar{{Name: "PORT", Value: "8080"}, {Name: "NODE", ValueFrom: &corev1.EnvVarSource{}}}
	got := strings.Join(expand([]string{"check", "$(PORT)", "$(NODE)", "$(OTHER)", "$$(PORT)"}, env), " ")
	if want := "check 8080  $(OTHER) $(PORT)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestARedirectElsewhereIsReportedAndPasses(t *testing.T) {
	port := httpServer(t, false)
	events := make(chan string, 9)
	changed := make(chan struct{}, 9)
	prober, err := New(Config{
		Exec:    noExec,
		Changed: func(types.UID) { changed <- struct{}{} },
		Event:   func(_ *corev1.Pod, _, _, reason, message string) { events <- reason + " " + message },
	})
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
	t.Cleanup(func() { prober.Remove("u") })
	spec := command("")
	spec.Exec, spec.HTTPGet = nil, &corev1.HTTPGetAction{Path: "/away", Port: intstr.FromInt32(port)}
	prober.Sync([]Target{{PodUID: "u", Pod: pod, ContainerID: "c", Container: corev1.Container{ReadinessProbe: spec},
		PodIP: "127.0.0.1", StartedAt: time.Now()}})
	<-changed
	if r, known := prober.Result("c", Readiness); r != Success || !known {
		t.Errorf("readiness is %s, known %t", r, known)
	}
	if e := <-events; !strings.HasPrefix(e, "ProbeWarning Readiness probe warning: Probe terminated redirects") {
		t.Errorf("event %q", e)
	}
}

func TestHTTPHooks(t *testing.T) {
	plain := httpServer(t, false)
	for name, test := range map[string]struct {
		action corev1.HTTPGetAction
		ok     bool
	}{
		"any response counts":              {corev1.HTTPGetAction{Path: "/bad", Port: intstr.FromInt32(plain)}, true},
		"HTTPS falls back to plain text":   {corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt32(plain), Scheme: "HTTPS"}, true},
		"nobody listening is an error":     {corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt32(1)}, false},
		"an unknown port name is an error": {corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("x")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := RunHTTPHook(t.Context(), &test.action, &corev1.Container{}, "127.0.0.1")
			if (err == nil) != test.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
