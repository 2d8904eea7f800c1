package probes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/probe"
	grpcprobe "k8s.io/kubernetes/pkg/probe/grpc"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
	tcpprobe "k8s.io/kubernetes/pkg/probe/tcp"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// maxOutput is how many bytes of a command's output appear in an event (kubernetes/pkg/probe/exec).
const maxOutput = 10 << 10

// checker carries out a check once. HTTP, TCP and gRPC dial from this process, which runs in the node's network namespace.
type checker struct {
	exec ExecFunc
	http httpprobe.Prober
	tcp  tcpprobe.Prober
	grpc grpcprobe.Prober
}

func newChecker(exec ExecFunc) checker {
	const followNonLocalRedirects = false
	return checker{
		exec: exec,
		http: httpprobe.New(followNonLocalRedirects),
		tcp:  tcpprobe.New(),
		grpc: grpcprobe.New(),
	}
}

// run returns the outcome and the output for the user; an error means that the check could not be carried out.
func (c checker) run(ctx context.Context, spec *corev1.Probe, t Target) (probe.Result, string, error) {
	timeout := seconds(spec.TimeoutSeconds, 1)
	switch {
	case spec.Exec != nil:
		return c.runExec(ctx, spec.Exec, t, timeout)
	case spec.HTTPGet != nil:
		return c.runHTTP(ctx, spec.HTTPGet, t, timeout)
	case spec.TCPSocket != nil:
		return c.runTCP(spec.TCPSocket, t, timeout)
	case spec.GRPC != nil:
		return c.runGRPC(spec.GRPC, t, timeout)
	default:
		return probe.Unknown, "", fmt.Errorf("missing probe handler for %s/%s:%s", t.Pod.Namespace, t.Pod.Name, t.Container.Name)
	}
}

func (c checker) runExec(ctx context.Context, action *corev1.ExecAction, t Target, timeout time.Duration) (probe.Result, string, error) {
	exit, out, err := c.exec(ctx, t.ContainerID, expand(action.Command, t.Container.Env), timeout)
	switch {
	case err != nil && isTimeout(err):
		return probe.Failure, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(action.Command, " "), timeout), nil
	case err != nil:
		return probe.Unknown, "", err
	case exit != 0:
		return probe.Failure, string(out[:min(len(out), maxOutput)]), nil
	default:
		return probe.Success, string(out[:min(len(out), maxOutput)]), nil
	}
}

func (c checker) runHTTP(ctx context.Context, action *corev1.HTTPGetAction, t Target, timeout time.Duration) (probe.Result, string, error) {
	req, err := httpprobe.NewRequestForHTTPGetAction(action, &t.Container, t.PodIP, "probe")
	if err != nil {
		return probe.Unknown, "", err
	}
	if action.Protocol != nil && *action.Protocol == corev1.HTTPProtocolHTTP2 {
		return c.http.ProbeH2C(req.WithContext(ctx), timeout)
	}
	return c.http.Probe(req.WithContext(ctx), timeout)
}

func (c checker) runTCP(action *corev1.TCPSocketAction, t Target, timeout time.Duration) (probe.Result, string, error) {
	port, err := probe.ResolveContainerPort(action.Port, &t.Container)
	if err != nil {
		return probe.Unknown, "", err
	}
	host := action.Host
	if host == "" {
		host = t.PodIP
	}
	return c.tcp.Probe(host, port, timeout)
}

func (c checker) runGRPC(action *corev1.GRPCAction, t Target, timeout time.Duration) (probe.Result, string, error) {
	service := ""
	if action.Service != nil {
		service = *action.Service
	}
	useTLS := action.Mode != nil && *action.Mode == corev1.GRPCProbeModeTLS
	return c.grpc.Probe(t.PodIP, service, int(action.Port), timeout, grpcprobe.ProbeOptions{UseTLS: useTLS})
}

// expand replaces $(NAME) by the container's literal environment variables; kubelet resolves no others here either.
func expand(command []string, env []corev1.EnvVar) []string {
	values := make(map[string]string, len(env))
	for _, e := range env {
		values[e.Name] = e.Value
	}
	mapping := expansion.MappingFuncFor(values)
	expanded := make([]string, 0, len(command))
	for _, word := range command {
		expanded = append(expanded, expansion.Expand(word, mapping))
	}
	return expanded
}

func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
}
