package daemonset

import (
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	scheduling "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"weft.dev/weft/controlplane/reconcile"
)

// labelGeneration is the label of pods that old clients tell templates apart by.
const labelGeneration = "pod-template-generation"

// placement says on which nodes the pods of one DaemonSet belong.
type placement struct {
	nodeName    string // "" for any
	tolerations []corev1.Toleration
	affinity    nodeaffinity.RequiredNodeAffinity
}

// verdict is what a node is to a DaemonSet. A pod is only made where it should
// run; one that runs stays where it may. shouldRun implies mayStay.
type verdict struct{ shouldRun, mayStay bool }

func newPlacement(ds *appsv1.DaemonSet) placement {
	spec := &ds.Spec.Template.Spec
	return placement{
		nodeName:    spec.NodeName,
		tolerations: daemonTolerations(spec),
		affinity:    nodeaffinity.NewRequiredNodeAffinity(spec.NodeSelector, spec.Affinity),
	}
}

// on judges a node; one that does not exist is nobody's. Where the template's
// node name, selector or affinity do not match, pods must go. A NoSchedule
// taint keeps new pods away, a NoExecute taint drives out those that run.
func (p placement) on(node *corev1.Node) verdict {
	if node == nil || p.nodeName != "" && p.nodeName != node.Name {
		return verdict{}
	}
	// An affinity that cannot be parsed matches nothing.
	if matches, err := p.affinity.Match(node); err != nil || !matches {
		return verdict{}
	}
	stay := p.tolerates(node, corev1.TaintEffectNoExecute)
	return verdict{shouldRun: stay && p.tolerates(node, corev1.TaintEffectNoSchedule), mayStay: stay}
}

func (p placement) tolerates(node *corev1.Node, effect corev1.TaintEffect) bool {
	_, untolerated := scheduling.FindMatchingUntoleratedTaint(klog.Logger{}, node.Spec.Taints, p.tolerations,
		func(t *corev1.Taint) bool { return t.Effect == effect }, true)
	return !untolerated
}

// samePlace reports whether no placement can tell the two apart.
func samePlace(a, b *corev1.Node) bool {
	return maps.Equal(a.Labels, b.Labels) && equality.Semantic.DeepEqual(a.Spec.Taints, b.Spec.Taints)
}

// affected returns the DaemonSets that judge the two states of a node
// differently; nil is a node that does not exist.
func affected(all []*appsv1.DaemonSet, before, after *corev1.Node) []*appsv1.DaemonSet {
	return slices.DeleteFunc(slices.Clone(all), func(ds *appsv1.DaemonSet) bool {
		place := newPlacement(ds)
		return place.on(before) == place.on(after)
	})
}

// daemonTolerations returns the template's tolerations and those that every
// daemon pod has: it starts on nodes that are cordoned or under pressure, and
// stays on nodes that are not ready or cannot be reached.
// https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/#taints-and-tolerations
func daemonTolerations(spec *corev1.PodSpec) []corev1.Toleration {
	defaults := []corev1.Toleration{
		{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeDiskPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodePIDPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule},
	}
	if spec.HostNetwork {
		defaults = append(defaults, corev1.Toleration{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule})
	}
	tolerations := slices.Clone(spec.Tolerations)
	for _, d := range defaults {
		d.Operator = corev1.TolerationOpExists
		// The template may have the same one for a limited time; it is for ever.
		i := slices.IndexFunc(tolerations, func(t corev1.Toleration) bool { return t.MatchToleration(&d) })
		if i < 0 {
			tolerations = append(tolerations, d)
		} else {
			tolerations[i] = d
		}
	}
	return tolerations
}

// newPod returns the pod of the template for one node.
func newPod(ds *appsv1.DaemonSet, node, hash string) *corev1.Pod {
	pod := reconcile.NewPod(&ds.Spec.Template, ds, kind)
	pod.Labels = maps.Clone(pod.Labels)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	if generation, ok := templateGeneration(ds); ok {
		pod.Labels[labelGeneration] = generation
	}
	pod.Spec.Tolerations = daemonTolerations(&pod.Spec)
	pod.Spec.Affinity = onlyOn(node, pod.Spec.Affinity)
	return pod
}

// onlyOn narrows an affinity to one node. What it required of nodes has been
// checked against that node and is replaced; the rest stays. It may change
// affinity.
func onlyOn(node string, affinity *corev1.Affinity) *corev1.Affinity {
	if affinity == nil {
		affinity = &corev1.Affinity{}
	}
	if affinity.NodeAffinity == nil {
		affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchFields: []corev1.NodeSelectorRequirement{{
				Key:      metav1.ObjectNameField,
				Operator: corev1.NodeSelectorOpIn,
				Values:   []string{node},
			}},
		}},
	}
	return affinity
}

// targetNode returns the node that a daemon pod runs on, or waits to be bound
// to; "" if it is for no node in particular, as an adopted pod may be.
func targetNode(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, field := range term.MatchFields {
				if field.Key == metav1.ObjectNameField && field.Operator == corev1.NodeSelectorOpIn && len(field.Values) == 1 {
					return field.Values[0]
				}
			}
		}
	}
	return ""
}

// templateGeneration counts the DaemonSet's templates. The API server keeps it.
func templateGeneration(ds *appsv1.DaemonSet) (string, bool) {
	generation, ok := ds.Annotations[appsv1.DeprecatedTemplateGeneration]
	if _, err := strconv.ParseInt(generation, 10, 64); err != nil {
		return "", false
	}
	return generation, ok
}
