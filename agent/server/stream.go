package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/proxy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/pods"
)

func (s *Server) listPods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	for _, pod := range s.cfg.Pods.Pods() {
		list.Items = append(list.Items, *pod)
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(list); err != nil {
		s.log.Debug("pod list not sent", "error", err)
	}
}

// pod finds the pod that the request names, and answers the request if there
// is none.
func (s *Server) pod(w http.ResponseWriter, r *http.Request) *corev1.Pod {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	pod, found := s.cfg.Pods.Pod(namespace, name)
	if uid := r.PathValue("uid"); !found || (uid != "" && uid != string(pod.UID)) {
		http.Error(w, fmt.Sprintf("pod %q not found in namespace %q", name, namespace), http.StatusNotFound)
		return nil
	}
	return pod
}

// container finds the container that the request names, and answers the
// request if there is none.
func (s *Server) container(w http.ResponseWriter, r *http.Request) *pods.Container {
	pod := s.pod(w, r)
	if pod == nil {
		return nil
	}
	container, found := s.cfg.Pods.Container(pod.UID, r.PathValue("container"))
	if !found {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", r.PathValue("container"), pod.Name), http.StatusNotFound)
		return nil
	}
	return &container
}

// isSet reads a query parameter as kubelet does: "1" or "true".
func isSet(query url.Values, name string) bool {
	set, err := strconv.ParseBool(query.Get(name))
	return err == nil && set
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	container := s.container(w, r)
	if container == nil {
		return
	}
	query := r.URL.Query()
	response, err := s.cfg.Runtime.Exec(r.Context(), &runtimeapi.ExecRequest{
		ContainerId: container.ID, Cmd: query[corev1.ExecCommandParam], Tty: isSet(query, corev1.ExecTTYParam),
		Stdin: isSet(query, corev1.ExecStdinParam), Stdout: isSet(query, corev1.ExecStdoutParam),
		Stderr: isSet(query, corev1.ExecStderrParam),
	})
	s.stream(w, r, response.GetUrl(), err)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	container := s.container(w, r)
	if container == nil {
		return
	}
	query := r.URL.Query()
	response, err := s.cfg.Runtime.Attach(r.Context(), &runtimeapi.AttachRequest{
		ContainerId: container.ID, Tty: isSet(query, corev1.ExecTTYParam),
		Stdin: isSet(query, corev1.ExecStdinParam), Stdout: isSet(query, corev1.ExecStdoutParam),
		Stderr: isSet(query, corev1.ExecStderrParam),
	})
	s.stream(w, r, response.GetUrl(), err)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	sandbox := s.sandbox(pod)
	if sandbox == "" {
		http.Error(w, fmt.Sprintf("pod %q has no sandbox yet", pod.Name), http.StatusNotFound)
		return
	}
	response, err := s.cfg.Runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: sandbox})
	s.stream(w, r, response.GetUrl(), err)
}

// sandbox is the pod's newest sandbox, found through any of its containers.
func (s *Server) sandbox(pod *corev1.Pod) string {
	for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for _, c := range containers {
			if container, found := s.cfg.Pods.Container(pod.UID, c.Name); found {
				return container.SandboxID
			}
		}
	}
	return ""
}

// stream passes the upgraded connection on to the runtime's streaming server,
// which listens on loopback in this node's network namespace.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, address string, err error) {
	target, parseErr := url.Parse(address)
	if err != nil || parseErr != nil {
		http.Error(w, fmt.Sprintf("container runtime: %v", errorOf(err, parseErr)), http.StatusInternalServerError)
		return
	}
	handler := proxy.NewUpgradeAwareHandler(target, nil, false, true, responder{s})
	handler.ServeHTTP(w, r)
}

func errorOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// responder answers requests that could not be passed on.
type responder struct{ server *Server }

func (r responder) Error(w http.ResponseWriter, _ *http.Request, err error) {
	r.server.log.Warn("stream to the container runtime failed", "error", err)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}
