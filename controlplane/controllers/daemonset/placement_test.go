package daemonset

import (
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func TestPlacement(t *testing.T) {
	selects := func(key, value string) func(*appsv1.DaemonSet) {
		return func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeSelector = map[string]string{key: value} }
	}
	requires := func(op corev1.NodeSelectorOperator) func(*appsv1.DaemonSet) {
		return func(ds *appsv1.DaemonSet) {
			ds.Spec.Template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: op, Values: []string{"ssd"}}},
				}}},
			}}
		}
	}
	tolerates := func(tolerations ...corev1.Toleration) func(*appsv1.DaemonSet) {
		return func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Tolerations = tolerations }
	}
	onNode := func(name string) func(*appsv1.DaemonSet) {
		return func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeName = name }
	}
	hostNetwork := func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.HostNetwork = true }
	const shouldRun, mayStay, mustGo = "should run", "may stay", "must go"

	cases := []struct {
		name string
		ds   *appsv1.DaemonSet
		node *corev1.Node
		want string
	}{
		{"any node is right for a plain template", agent(), machine("n"), shouldRun},
		{"a node that does not exist is not", agent(), nil, mustGo},
		{"the template's node name matches", with(onNode("n")), machine("n"), shouldRun},
		{"the template names another node", with(onNode("m")), machine("n"), mustGo},
		{"the node selector matches", with(selects("disk", "ssd")), labelled(machine("n"), "disk", "ssd"), shouldRun},
		{"the node selector does not match", with(selects("disk", "ssd")), labelled(machine("n"), "disk", "hdd"), mustGo},
		{"the node affinity matches", with(requires(corev1.NodeSelectorOpIn)), labelled(machine("n"), "disk", "ssd"), shouldRun},
		{"the node affinity does not match", with(requires(corev1.NodeSelectorOpNotIn)), labelled(machine("n"), "disk", "ssd"), mustGo},
		{"an affinity that makes no sense matches nothing", with(requires("Like")), labelled(machine("n"), "disk", "ssd"), mustGo},
		{"a NoSchedule taint keeps new pods away", agent(), machine("n", taint("k", corev1.TaintEffectNoSchedule)), mayStay},
		{"a NoExecute taint drives pods out", agent(), machine("n", taint("k", corev1.TaintEffectNoExecute)), mustGo},
		{"a PreferNoSchedule taint is for the scheduler alone", agent(), machine("n", taint("k", corev1.TaintEffectPreferNoSchedule)), shouldRun},
		{"the template tolerates the taint", with(tolerates(corev1.Toleration{Operator: corev1.TolerationOpExists})), machine("n", taint("k", corev1.TaintEffectNoExecute)), shouldRun},
		{"the template tolerates NoExecute alone", with(tolerates(corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})),
			machine("n", taint("k", corev1.TaintEffectNoExecute), taint("k", corev1.TaintEffectNoSchedule)), mayStay},
		{"a cordoned node gets its daemons", agent(), machine("n", taint(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)), shouldRun},
		{"a node under disk pressure gets its daemons", agent(), machine("n", taint(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule)), shouldRun},
		{"a node under memory pressure gets its daemons", agent(), machine("n", taint(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule)), shouldRun},
		{"a node short of process ids gets its daemons", agent(), machine("n", taint(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule)), shouldRun},
		{"a node that is not ready keeps its daemons, but gets none", agent(),
			machine("n", taint(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute), taint(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule)), mayStay},
		{"a node out of reach keeps its daemons, but gets none", agent(),
			machine("n", taint(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute), taint(corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule)), mayStay},
		{"a node without network gets daemons of the host network", with(hostNetwork), machine("n", taint(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)), shouldRun},
		{"a node without network gets no others", agent(), machine("n", taint(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)), mayStay},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := map[verdict]string{{true, true}: shouldRun, {false, true}: mayStay, {}: mustGo}[newPlacement(c.ds).on(c.node)]
			if got != c.want {
				t.Errorf("a pod %s, want %s", got, c.want)
			}
		})
	}
}

func TestNodeChangesConcernThoseThatJudgeThemDifferently(t *testing.T) {
	named := func(name, disk string) *appsv1.DaemonSet {
		return with(func(ds *appsv1.DaemonSet) {
			ds.Name = name
			if disk != "" {
				ds.Spec.Template.Spec.NodeSelector = map[string]string{"disk": disk}
			}
		})
	}
	all := []*appsv1.DaemonSet{named("any", ""), named("ssd", "ssd"), named("hdd", "hdd")}
	node := func(disk string, taints ...corev1.Taint) *corev1.Node {
		return labelled(machine("n", taints...), "disk", disk)
	}
	cases := []struct {
		name          string
		before, after *corev1.Node
		want          string
	}{
		{"a node joins", nil, node("ssd"), "any ssd"},
		{"a node leaves", node("hdd"), nil, "any hdd"},
		{"a label changes", node("ssd"), node("hdd"), "ssd hdd"},
		{"a label changes that nobody asks for", node("ssd"), labelled(node("ssd"), "colour", "blue"), ""},
		{"a node is closed", node("ssd"), node("ssd", taint("k", corev1.TaintEffectNoSchedule)), "any ssd"},
		{"a node is cordoned, which daemons tolerate", node("ssd"), node("ssd", taint(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)), ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var names []string
			for _, ds := range affected(all, c.before, c.after) {
				names = append(names, ds.Name)
			}
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("concerns %q, want %q", got, c.want)
			}
		})
	}
}

func TestDefaultTolerationsAreForEver(t *testing.T) {
	spec := corev1.PodSpec{HostNetwork: true, Tolerations: []corev1.Toleration{
		{Key: "own", Operator: corev1.TolerationOpExists},
		{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: new(int64(300))},
	}}
	var got []string
	for _, toleration := range daemonTolerations(&spec) {
		if toleration.TolerationSeconds != nil {
			t.Errorf("%s is tolerated for %d s only", toleration.Key, *toleration.TolerationSeconds)
		}
		got = append(got, fmt.Sprintf("%s:%s", strings.TrimPrefix(toleration.Key, "node.kubernetes.io/"), toleration.Effect))
	}
	const want = "own: not-ready:NoExecute unreachable:NoExecute disk-pressure:NoSchedule memory-pressure:NoSchedule " +
		"pid-pressure:NoSchedule unschedulable:NoSchedule network-unavailable:NoSchedule"
	if all := strings.Join(got, " "); all != want {
		t.Errorf("\n got %s\nwant %s", all, want)
	}
	if len(spec.Tolerations) != 2 || spec.Tolerations[1].TolerationSeconds == nil {
		t.Error("the template was changed")
	}
}

func TestPodIsForOneNode(t *testing.T) {
	ds := agent()
	preferred := []corev1.PreferredSchedulingTerm{{Weight: 1}}
	ds.Spec.Template.Spec.Affinity = &corev1.Affinity{
		NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution:  &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{}, {}}},
			PreferredDuringSchedulingIgnoredDuringExecution: preferred,
		},
		PodAntiAffinity: &corev1.PodAntiAffinity{},
	}
	ds.Annotations = map[string]string{appsv1.DeprecatedTemplateGeneration: "7"}
	p := newPod(ds, "n1", "abc")
	if p.Spec.NodeName != "" || targetNode(p) != "n1" {
		t.Errorf("bound to %q, for %q; want it bound by the scheduler, to n1", p.Spec.NodeName, targetNode(p))
	}
	if a := p.Spec.Affinity; len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) != 1 || a.PodAntiAffinity == nil {
		t.Errorf("the rest of the affinity is lost: %+v", a)
	}
	if p.Labels["controller-revision-hash"] != "abc" || p.Labels["pod-template-generation"] != "7" || p.Labels["app"] != "agent" {
		t.Errorf("labels %v", p.Labels)
	}
	if len(ds.Spec.Template.Labels) != 1 || len(ds.Spec.Template.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms) != 2 {
		t.Error("the template was changed")
	}
}

func TestTargetNodeOfAStrangePodIsNone(t *testing.T) {
	p := pod("p", "n1", unbound)
	p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values = []string{"n1", "n2"}
	if got := targetNode(p); got != "" {
		t.Errorf("got %q", got)
	}
	p.Spec.Affinity = nil
	if got := targetNode(p); got != "" {
		t.Errorf("got %q", got)
	}
}
