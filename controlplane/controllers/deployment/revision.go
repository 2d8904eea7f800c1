package deployment

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/dump"
)

// Annotations that kubectl and other tools read.
const (
	annotationRevision = "deployment.kubernetes.io/revision"
	annotationHistory  = "deployment.kubernetes.io/revision-history"
	annotationDesired  = "deployment.kubernetes.io/desired-replicas"
	annotationMax      = "deployment.kubernetes.io/max-replicas"
)

// maxHistory bounds the text of annotationHistory, in bytes.
const maxHistory = 2000

// notCopied are the annotations that a Deployment and its sets each have for themselves.
var notCopied = map[string]bool{
	corev1.LastAppliedConfigAnnotation: true,
	annotationRevision:                 true,
	annotationHistory:                  true,
	annotationDesired:                  true,
	annotationMax:                      true,
	appsv1.DeprecatedRollbackTo:        true,
}

// sameTemplate compares templates but for the hash label, which only sets have.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	return equality.Semantic.DeepEqual(withoutHash(a), withoutHash(b))
}

func withoutHash(template *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	if _, ok := template.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; !ok {
		return template
	}
	bare := *template
	bare.Labels = maps.Clone(template.Labels)
	delete(bare.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return &bare
}

// templateHash names a template. It is upstream's hash, so that sets keep
// their names when a cluster moves between the two.
func templateHash(template *corev1.PodTemplateSpec, collisions *int32) string {
	hash := fnv.New32a()
	fmt.Fprintf(hash, "%v", dump.ForHash(*template))
	if collisions != nil {
		var count [8]byte
		binary.LittleEndian.PutUint32(count[:], uint32(*collisions))
		hash.Write(count[:])
	}
	return rand.SafeEncodeString(fmt.Sprint(hash.Sum32()))
}

// createSet plans the new set, in the size it may have at once.
func (r *rollout) createSet() {
	d := r.d
	hash := templateHash(&d.Spec.Template, d.Status.CollisionCount)
	template := *d.Spec.Template.DeepCopy()
	template.Labels = withEntry(template.Labels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	selector := d.Spec.Selector.DeepCopy()
	selector.MatchLabels = withEntry(selector.MatchLabels, appsv1.DefaultDeploymentUniqueLabelKey, hash)

	n := *d.Spec.Replicas
	if d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		n = min(n, r.room(limitsOf(d)))
	}
	r.newest = &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name:            setName(d.Name, hash),
			Namespace:       d.Namespace,
			Labels:          maps.Clone(template.Labels),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, kind)},
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        &n,
			MinReadySeconds: d.Spec.MinReadySeconds,
			Selector:        selector,
			Template:        template,
		},
	}
	r.keepRevision()
	r.noteSize(r.newest)
	r.plan.Create = r.newest
	if n > 0 {
		r.plan.Scalings = append(r.plan.Scalings, fmt.Sprintf("Scaled up replica set %s from 0 to %d", r.newest.Name, n))
	}
}

// setName fits into the limit that names have.
func setName(deployment, hash string) string {
	longest := validation.DNS1123SubdomainMaxLength - len(hash) - 1
	return deployment[:min(len(deployment), longest)] + "-" + hash
}

// keepRevision gives the new set the highest revision, the Deployment's
// annotations and its minReadySeconds. A set that had another revision before
// is one that was rolled back to; it remembers the former number.
func (r *rollout) keepRevision() {
	set := r.newest
	for key, value := range r.d.Annotations {
		if !notCopied[key] {
			set.Annotations = withEntry(set.Annotations, key, value)
		}
	}
	set.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
	var highest int64
	for _, old := range r.old {
		highest = max(highest, revisionOf(old))
	}
	had, hadAny := set.Annotations[annotationRevision]
	if revisionOf(set) > highest {
		return
	}
	set.Annotations = withEntry(set.Annotations, annotationRevision, strconv.FormatInt(highest+1, 10))
	if hadAny {
		set.Annotations = withEntry(set.Annotations, annotationHistory, withRevision(set.Annotations[annotationHistory], had))
	}
}

// withRevision appends a revision to a history, forgetting the oldest if it gets too long.
func withRevision(history, revision string) string {
	if history == "" {
		return revision
	}
	history += "," + revision
	for len(history) > maxHistory {
		_, history, _ = strings.Cut(history, ",")
	}
	return history
}

// revisionOf is 0 for a set that has none, or one that is no number.
func revisionOf(set *appsv1.ReplicaSet) int64 {
	n, _ := strconv.ParseInt(set.Annotations[annotationRevision], 10, 64)
	return n
}

// withEntry returns a copy of m with one more entry, or m if it has it.
func withEntry(m map[string]string, key, value string) map[string]string {
	if have, ok := m[key]; ok && have == value {
		return m
	}
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}
