package job

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// judgment is what the Job's podFailurePolicy says of a failed pod.
type judgment struct {
	action batchv1.PodFailurePolicyAction
	// message says which rule fails the Job; empty for other actions.
	message string
}

// judge applies the first rule that matches (KEP-3329). Without one the
// failure counts.
func judge(policy *batchv1.PodFailurePolicy, pod *corev1.Pod) judgment {
	if policy == nil {
		return judgment{action: batchv1.PodFailurePolicyActionCount}
	}
	for i, rule := range policy.Rules {
		what, matches := matchRule(rule, pod)
		if !matches {
			continue
		}
		verdict := judgment{action: rule.Action}
		if rule.Action == batchv1.PodFailurePolicyActionFailJob {
			verdict.message = fmt.Sprintf("%s matching %s rule at index %d", what, rule.Action, i)
		}
		return verdict
	}
	return judgment{action: batchv1.PodFailurePolicyActionCount}
}

// matchRule also describes what matched.
func matchRule(rule batchv1.PodFailurePolicyRule, pod *corev1.Pod) (what string, matches bool) {
	if rule.OnExitCodes != nil {
		for _, status := range slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses) {
			if matchExitCode(rule.OnExitCodes, status) {
				return fmt.Sprintf("Container %s for pod %s/%s failed with exit code %d",
					status.Name, pod.Namespace, pod.Name, status.State.Terminated.ExitCode), true
			}
		}
		return "", false
	}
	for _, condition := range pod.Status.Conditions {
		for _, pattern := range rule.OnPodConditions {
			if condition.Type == pattern.Type && condition.Status == pattern.Status {
				return fmt.Sprintf("Pod %s/%s has condition %s", pod.Namespace, pod.Name, condition.Type), true
			}
		}
	}
	return "", false
}

func matchExitCode(rule *batchv1.PodFailurePolicyOnExitCodesRequirement, status corev1.ContainerStatus) bool {
	ended := status.State.Terminated
	if ended == nil || ended.ExitCode == 0 || rule.ContainerName != nil && *rule.ContainerName != status.Name {
		return false
	}
	listed := slices.Contains(rule.Values, ended.ExitCode)
	return listed == (rule.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn)
}

// matchSuccessPolicy says which rule of the policy the completed indexes
// satisfy, and "" if none (KEP-3998).
func matchSuccessPolicy(policy *batchv1.SuccessPolicy, completed indexes, completions int) string {
	if policy == nil || len(completed) == 0 {
		return ""
	}
	for i, rule := range policy.Rules {
		have, need := completed.len(), completions+1
		if rule.SucceededIndexes != nil {
			wanted := parseIndexes(*rule.SucceededIndexes, completions)
			if len(wanted) == 0 {
				continue
			}
			have, need = completed.common(wanted), wanted.len()
		}
		if rule.SucceededCount != nil {
			need = min(need, int(*rule.SucceededCount))
		}
		if have >= need {
			return fmt.Sprintf("Matched rules at index %d", i)
		}
	}
	return ""
}
