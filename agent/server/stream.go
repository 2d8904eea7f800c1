package server

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/proxy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// labelPodUID is the CRI label that every kubelet puts on a sandbox.
const labelPodUID = "io.kubernetes.pod.uid"

// exec runs a command in a container and connects its streams.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	streams, failed := streamsOf(r.URL.Query())
	if failed != nil {
		failed.write(w)
		return
	}
	command := r.URL.Query()[corev1.ExecCommandParam]
	if len(command) == 0 {
		fail(http.StatusBadRequest, "parameter %q is missing", corev1.ExecCommandParam).write(w)
		return
	}
	c, failed := s.container(r)
	if failed != nil {
		failed.write(w)
		return
	}
	response, err := s.cfg.Runtime.Exec(r.Context(), &runtimeapi.ExecRequest{
		ContainerId: c.ID, Cmd: command, Tty: streams.tty, Stdin: streams.in, Stdout: streams.out, Stderr: streams.err,
	})
	s.connect(w, r, response.GetUrl(), err)
}

// attach connects the streams of a container's own process.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	streams, failed := streamsOf(r.URL.Query())
	if failed != nil {
		failed.write(w)
		return
	}
	c, failed := s.container(r)
	if failed != nil {
		failed.write(w)
		return
	}
	response, err := s.cfg.Runtime.Attach(r.Context(), &runtimeapi.AttachRequest{
		ContainerId: c.ID, Tty: streams.tty, Stdin: streams.in, Stdout: streams.out, Stderr: streams.err,
	})
	s.connect(w, r, response.GetUrl(), err)
}

// portForward connects to ports of a pod; the stream protocol names them.
func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	pod, failed := s.pod(r)
	if failed != nil {
		failed.write(w)
		return
	}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	list, err := s.cfg.Runtime.ListPodSandbox(r.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: ready, LabelSelector: map[string]string{labelPodUID: string(pod.UID)},
	}})
	if err == nil && len(list.Items) == 0 {
		fail(http.StatusNotFound, "pod %q is not running", pod.Name).write(w)
		return
	}
	var target string
	if err == nil {
		var response *runtimeapi.PortForwardResponse
		response, err = s.cfg.Runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: list.Items[0].Id})
		target = response.GetUrl()
	}
	s.connect(w, r, target, err)
}

// connect joins the caller with the runtime's streaming server at target,
// which listens on the node's loopback. The API server speaks SPDY to a node;
// WebSocket clients are translated there.
func (s *Server) connect(w http.ResponseWriter, r *http.Request, target string, err error) {
	location, parseErr := url.Parse(target)
	switch {
	case err != nil:
		s.runtimeFailure(err).write(w)
		return
	case parseErr != nil || location.Host == "":
		fail(http.StatusInternalServerError, "the container runtime gave no usable address (%q)", target).write(w)
		return
	}
	proxy.NewUpgradeAwareHandler(location, nil, false, true, s).ServeHTTP(w, r)
}

// Error implements proxy.ErrorResponder.
func (s *Server) Error(w http.ResponseWriter, r *http.Request, err error) {
	s.log.Warn("stream to the container runtime failed", "path", r.URL.Path, "error", err)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

// runtimeFailure translates an error of the runtime.
func (s *Server) runtimeFailure(err error) *failure {
	switch status.Code(err) {
	case codes.NotFound:
		return fail(http.StatusNotFound, "%v", err)
	case codes.ResourceExhausted:
		return fail(http.StatusTooManyRequests, "%v", err)
	case codes.Unavailable:
		return fail(http.StatusServiceUnavailable, "the container runtime does not answer: %v", err)
	}
	return fail(http.StatusInternalServerError, "%v", err)
}

// run runs a command without streams and answers with its output.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	command := strings.Fields(r.URL.Query().Get("cmd"))
	if len(command) == 0 {
		fail(http.StatusBadRequest, "parameter %q is missing", "cmd").write(w)
		return
	}
	c, failed := s.container(r)
	if failed != nil {
		failed.write(w)
		return
	}
	response, err := s.cfg.Runtime.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: command})
	if err != nil {
		s.runtimeFailure(err).write(w)
		return
	}
	if response.ExitCode != 0 {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "command exited with code %d\n", response.ExitCode)
	}
	_, _ = w.Write(append(response.Stdout, response.Stderr...))
}

type streams struct{ in, out, err, tty bool }

// streamsOf decodes which streams the caller wants. With a terminal, stderr is
// part of stdout.
func streamsOf(query url.Values) (streams, *failure) {
	want := func(name string) bool {
		on, err := strconv.ParseBool(query.Get(name))
		return err == nil && on
	}
	s := streams{in: want(corev1.ExecStdinParam), out: want(corev1.ExecStdoutParam), err: want(corev1.ExecStderrParam), tty: want(corev1.ExecTTYParam)}
	if s.tty {
		s.err = false
	}
	if !s.in && !s.out && !s.err {
		return s, fail(http.StatusBadRequest, "you must specify at least 1 of stdin, stdout, stderr")
	}
	return s, nil
}
