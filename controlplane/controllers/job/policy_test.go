package job

import (
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

func TestJudge(t *testing.T) {
	const (
		ignore    = batchv1.PodFailurePolicyActionIgnore
		failJob   = batchv1.PodFailurePolicyActionFailJob
		failIndex = batchv1.PodFailurePolicyActionFailIndex
		counts    = batchv1.PodFailurePolicyActionCount
	)
	onDisruption := batchv1.PodFailurePolicyRule{Action: ignore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{
		{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue},
	}}
	except := exitCodes(failJob, 2, 3)
	except.OnExitCodes.Operator = batchv1.PodFailurePolicyOnExitCodesOpNotIn
	elsewhere := exitCodes(ignore, 1)
	elsewhere.OnExitCodes.ContainerName = new("other")
	inInit := func(p *corev1.Pod) {
		p.Status.InitContainerStatuses, p.Status.ContainerStatuses = p.Status.ContainerStatuses, nil
	}
	cases := []struct {
		name    string
		rules   []batchv1.PodFailurePolicyRule
		pod     *corev1.Pod
		action  batchv1.PodFailurePolicyAction
		message string
	}{
		{"without rules a failure counts", nil, pod("p", failed), counts, ""},
		{"an exit code is ignored", []batchv1.PodFailurePolicyRule{exitCodes(ignore, 1)}, pod("p", failed), ignore, ""},
		{"an exit code fails the Job", []batchv1.PodFailurePolicyRule{exitCodes(failJob, 1)}, pod("p", failed), failJob,
			"Container c for pod ns/p failed with exit code 1 matching FailJob rule at index 0"},
		{"an init container's exit code, too", []batchv1.PodFailurePolicyRule{exitCodes(failJob, 1)}, pod("p", failed, inInit), failJob,
			"Container c for pod ns/p failed with exit code 1 matching FailJob rule at index 0"},
		{"an exit code fails the index", []batchv1.PodFailurePolicyRule{exitCodes(failIndex, 1)}, pod("p", failed), failIndex, ""},
		{"another exit code counts", []batchv1.PodFailurePolicyRule{exitCodes(ignore, 2)}, pod("p", failed), counts, ""},
		{"NotIn matches other codes", []batchv1.PodFailurePolicyRule{except}, pod("p", failed), failJob,
			"Container c for pod ns/p failed with exit code 1 matching FailJob rule at index 0"},
		{"NotIn does not match success", []batchv1.PodFailurePolicyRule{except}, pod("p", succeeded), counts, ""},
		{"a rule may name the container", []batchv1.PodFailurePolicyRule{elsewhere}, pod("p", failed), counts, ""},
		{"a condition is ignored", []batchv1.PodFailurePolicyRule{onDisruption}, pod("p", failed, disrupted), ignore, ""},
		{"without the condition it counts", []batchv1.PodFailurePolicyRule{onDisruption}, pod("p", failed), counts, ""},
		{"the first rule that matches decides", []batchv1.PodFailurePolicyRule{onDisruption, exitCodes(failJob, 1)}, pod("p", failed, disrupted), ignore, ""},
		{"the index of the rule is said", []batchv1.PodFailurePolicyRule{exitCodes(ignore, 9), {
			Action: failJob, OnPodConditions: onDisruption.OnPodConditions,
		}}, pod("p", failed, disrupted), failJob, "Pod ns/p has condition DisruptionTarget matching FailJob rule at index 1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := judge(&batchv1.PodFailurePolicy{Rules: c.rules}, c.pod)
			if got.action != c.action || got.message != c.message {
				t.Errorf("got %v, want %s %q", got, c.action, c.message)
			}
		})
	}
}

func TestMatchSuccessPolicy(t *testing.T) {
	these := func(text string) batchv1.SuccessPolicyRule { return batchv1.SuccessPolicyRule{SucceededIndexes: &text} }
	any := func(n int32) batchv1.SuccessPolicyRule { return batchv1.SuccessPolicyRule{SucceededCount: &n} }
	both := these("0-4")
	both.SucceededCount = new(int32(2))
	cases := []struct {
		name      string
		rules     []batchv1.SuccessPolicyRule
		completed string
		want      string
	}{
		{"nothing has succeeded", []batchv1.SuccessPolicyRule{these("0")}, "", ""},
		{"all that are named have", []batchv1.SuccessPolicyRule{these("0,2-4")}, "0-5", "Matched rules at index 0"},
		{"one that is named has not", []batchv1.SuccessPolicyRule{these("0,2-4")}, "0-3", ""},
		{"enough of any have", []batchv1.SuccessPolicyRule{any(3)}, "1,5,7", "Matched rules at index 0"},
		{"too few have", []batchv1.SuccessPolicyRule{any(3)}, "1,5", ""},
		{"enough of those that are named have", []batchv1.SuccessPolicyRule{both}, "1,4", "Matched rules at index 0"},
		{"enough have, but others", []batchv1.SuccessPolicyRule{both}, "1,5-8", ""},
		{"the second rule matches", []batchv1.SuccessPolicyRule{these("9"), any(1)}, "1", "Matched rules at index 1"},
		{"a rule for indexes that do not exist never matches", []batchv1.SuccessPolicyRule{these("10-12")}, "0-9", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := matchSuccessPolicy(&batchv1.SuccessPolicy{Rules: c.rules}, parseIndexes(c.completed, 10), 10); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
