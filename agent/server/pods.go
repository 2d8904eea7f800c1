package server

import (
	"encoding/json"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/agent/pods"
)

// listPods answers with a v1 PodList.
func (s *Server) listPods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	for _, pod := range s.cfg.Pods.Pods() {
		list.Items = append(list.Items, *pod)
	}
	s.writeJSON(w, list)
}

func (s *Server) writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		s.log.Debug("node API: answer not sent", "error", err)
	}
}

// failure is an answer other than 200.
type failure struct {
	code    int
	message string
}

func fail(code int, format string, args ...any) *failure {
	return &failure{code: code, message: fmt.Sprintf(format, args...)}
}

func (f *failure) write(w http.ResponseWriter) { http.Error(w, f.message, f.code) }

// pod finds the pod that a path names, by namespace, name and, if given, UID.
func (s *Server) pod(r *http.Request) (*corev1.Pod, *failure) {
	pod, ok := s.cfg.Pods.Pod(r.PathValue("namespace"), r.PathValue("pod"))
	if uid := r.PathValue("uid"); !ok || uid != "" && string(pod.UID) != uid {
		return nil, fail(http.StatusNotFound, "pod %q does not exist", r.PathValue("pod"))
	}
	return pod, nil
}

// container finds the instance of the container that a path names.
func (s *Server) container(r *http.Request) (pods.Container, *failure) {
	pod, failed := s.pod(r)
	if failed != nil {
		return pods.Container{}, failed
	}
	name := r.PathValue("container")
	c, ok := s.cfg.Pods.Container(pod.UID, name)
	if !ok {
		return pods.Container{}, fail(http.StatusNotFound, "container not found (%q)", name)
	}
	return c, nil
}

// hasContainer tells whether the spec has a container of any kind by this name.
func hasContainer(pod *corev1.Pod, name string) bool {
	for _, c := range pod.Spec.Containers {
		if c.Name == name {
			return true
		}
	}
	for _, c := range pod.Spec.InitContainers {
		if c.Name == name {
			return true
		}
	}
	for _, c := range pod.Spec.EphemeralContainers {
		if c.Name == name {
			return true
		}
	}
	return false
}

// containerStatus is the status of a container of any kind; nil if there is none yet.
func containerStatus(pod *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
