package pods

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// referenceTo points an event at a pod or, with a name, at one of its containers.
func referenceTo(pod *corev1.Pod, container string) *corev1.ObjectReference {
	ref := &corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name,
		UID: pod.UID, ResourceVersion: pod.ResourceVersion}
	if container == "" {
		return ref
	}
	ref.FieldPath = fmt.Sprintf("spec.containers{%s}", container)
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == container {
			ref.FieldPath = fmt.Sprintf("spec.initContainers{%s}", container)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == container {
			ref.FieldPath = fmt.Sprintf("spec.ephemeralContainers{%s}", container)
		}
	}
	return ref
}

func nameOrEmpty(c *corev1.Container) string {
	if c == nil {
		return ""
	}
	return c.Name
}

// event reports a normal event about a pod, or one of its containers.
func (w *worker) event(pod *corev1.Pod, c *corev1.Container, reason, message string) {
	w.m.Event(pod, nameOrEmpty(c), corev1.EventTypeNormal, reason, message)
}

// warn reports a warning.
func (w *worker) warn(pod *corev1.Pod, c *corev1.Container, reason, message string) {
	w.m.Event(pod, nameOrEmpty(c), corev1.EventTypeWarning, reason, message)
}

// announce reports each back-off once, when it begins.
func (w *worker) announce(f facts, p plan) {
	for name, now := range p.waiting {
		if w.announced[name] == now {
			continue
		}
		w.announced[name] = now
		c := containerSpec(f.pod, name)
		switch now.reason {
		case reasonCrashLoopBackOff:
			w.warn(f.pod, c, eventBackOff, fmt.Sprintf("Back-off restarting failed container %s in pod %s", name, nameOf(f.pod)))
		case reasonImagePullBackOff:
			w.event(f.pod, c, eventBackOff, fmt.Sprintf("Back-off pulling image %q", c.Image))
			w.warn(f.pod, c, eventFailed, "Error: "+reasonImagePullBackOff)
		}
	}
	for name := range w.announced {
		if _, waits := p.waiting[name]; !waits {
			delete(w.announced, name)
		}
	}
}
