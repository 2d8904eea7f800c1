package pods

import (
	"encoding/json"
	"fmt"
	"hash/fnv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Questions about pod specs that several rules ask.

// isSidecar reports whether an init container keeps running beside the app.
func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// restartsAfter reports whether a container of a pod is started again after
// it has ended with an exit code (KEP-5307: container restart rules).
func restartsAfter(spec *corev1.PodSpec, c *corev1.Container, exitCode int32) bool {
	if c.RestartPolicy == nil {
		return policyRestarts(spec.RestartPolicy, exitCode)
	}
	for _, rule := range c.RestartPolicyRules {
		if rule.Action == corev1.ContainerRestartRuleActionRestart && ruleMatches(rule.ExitCodes, exitCode) {
			return true
		}
	}
	return policyRestarts(corev1.RestartPolicy(*c.RestartPolicy), exitCode)
}

func policyRestarts(policy corev1.RestartPolicy, exitCode int32) bool {
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return exitCode != 0
	default:
		return true
	}
}

func ruleMatches(codes *corev1.ContainerRestartRuleOnExitCodes, exitCode int32) bool {
	if codes == nil {
		return false
	}
	found := false
	for _, v := range codes.Values {
		found = found || v == exitCode
	}
	return found == (codes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn)
}

// restartsOnKill reports whether a container that is killed for its health,
// or because its definition changed, is started again.
func restartsOnKill(spec *corev1.PodSpec, c *corev1.Container) bool {
	if c.RestartPolicy != nil {
		return *c.RestartPolicy != corev1.ContainerRestartPolicyNever
	}
	return spec.RestartPolicy != corev1.RestartPolicyNever
}

// containerSpec finds a container of any kind by name.
func containerSpec(pod *corev1.Pod, name string) *corev1.Container {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i]
		}
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return &pod.Spec.InitContainers[i]
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return (*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		}
	}
	return nil
}

// everyContainer calls f for each container, in order of their start.
func everyContainer(pod *corev1.Pod, f func(*corev1.Container)) {
	for i := range pod.Spec.InitContainers {
		f(&pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		f(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.EphemeralContainers {
		f((*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
}

// hashOf identifies what makes a running container another container: the API
// lets only its image change.
func hashOf(c *corev1.Container) string {
	hash := fnv.New32a()
	// Two strings cannot fail to encode.
	data, _ := json.Marshal([]string{c.Name, c.Image})
	hash.Write(data)
	return fmt.Sprintf("%x", hash.Sum32())
}

// isTerminal reports whether a phase is final.
func isTerminal(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

// statusOf finds the API's status of a container of any kind, or nil.
func statusOf(status *corev1.PodStatus, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{status.ContainerStatuses, status.InitContainerStatuses, status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// nameOf is how log lines and messages call a pod, as kubelet does.
func nameOf(pod *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

func keyOf(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}
