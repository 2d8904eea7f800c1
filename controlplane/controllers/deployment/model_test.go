package deployment

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

// model is a Deployment whose sets and pods live in plain numbers. Its steps
// happen in random order, as if every controller were slow in its own way:
// statuses lag behind pods, and pods behind sizes.
type model struct {
	d     *appsv1.Deployment
	sets  []*appsv1.ReplicaSet
	pods  map[types.UID]*counts
	clock time.Time
	log   []string
}

// counts are the pods of one set that do not terminate.
type counts struct{ waiting, available int32 }

func newModel(n int32, surge, unavailable string) *model {
	m := &model{d: web(n, surge, unavailable), pods: map[types.UID]*counts{}, clock: now}
	m.finish()
	return m
}

// step is the Deployment controller's.
func (m *model) step() {
	p := decide(m.d, m.sets, nil, m.clock)
	for _, updated := range p.Update {
		for i, set := range m.sets {
			if set.UID == updated.UID {
				if *set.Spec.Replicas != *updated.Spec.Replicas {
					updated.Generation++
				}
				m.sets[i] = updated
			}
		}
	}
	if p.Create != nil {
		set := p.Create.DeepCopy()
		set.UID = types.UID(set.Name)
		set.Generation = 1
		set.CreationTimestamp = metav1.NewTime(m.clock)
		m.sets = append(m.sets, set)
		m.pods[set.UID] = &counts{}
	}
	m.d.Status = p.Status
	if p.Revision != "" {
		m.d.Annotations = withEntry(m.d.Annotations, annotationRevision, p.Revision)
	}
	m.log = append(m.log, "step: "+m.String())
}

// follow is the ReplicaSet controller's step: unavailable pods go first.
func (m *model) follow(set *appsv1.ReplicaSet) {
	pods := m.pods[set.UID]
	more := *set.Spec.Replicas - pods.waiting - pods.available
	if more >= 0 {
		pods.waiting += more
	} else {
		fewer := min(-more, pods.waiting)
		pods.waiting -= fewer
		pods.available -= -more - fewer
	}
	m.log = append(m.log, "follow: "+m.String())
}

// report is the ReplicaSet controller's status, before or after it followed.
func (m *model) report(set *appsv1.ReplicaSet) {
	pods := m.pods[set.UID]
	set.Status.Replicas = pods.waiting + pods.available
	set.Status.ObservedGeneration = set.Generation
	set.Status.ReadyReplicas, set.Status.AvailableReplicas = pods.available, pods.available
}

// ready makes a pod available.
func (m *model) ready(set *appsv1.ReplicaSet) {
	if pods := m.pods[set.UID]; pods.waiting > 0 {
		pods.waiting--
		pods.available++
		m.log = append(m.log, "ready: "+m.String())
	}
}

// finish runs everything in order until nothing changes any more.
func (m *model) finish() {
	for range 200 {
		m.step()
		for _, set := range m.sets {
			m.follow(set)
			for range *set.Spec.Replicas {
				m.ready(set)
			}
			m.report(set)
		}
		m.clock = m.clock.Add(time.Second)
	}
	m.log = nil
}

func (m *model) edit(image int) {
	m.d.Spec.Template = template(fmt.Sprint("v", image))
	m.d.Generation++
	m.log = append(m.log, fmt.Sprint("edit to v", image))
}

func (m *model) total() (all, available int32) {
	for _, pods := range m.pods {
		all += pods.waiting + pods.available
		available += pods.available
	}
	return all, available
}

func (m *model) String() string {
	var words []string
	for _, set := range m.sets {
		pods := m.pods[set.UID]
		words = append(words, fmt.Sprintf("%s: size %d, pods %d+%d", set.Spec.Template.Spec.Containers[0].Image, *set.Spec.Replicas, pods.waiting, pods.available))
	}
	return strings.Join(words, "; ")
}

// TestRolloutKeepsItsLimits edits the template at random moments of a rollout.
// There are never more pods than maxSurge allows and never fewer available
// ones than maxUnavailable allows, and left alone the rollout ends.
func TestRolloutKeepsItsLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int32Range(1, 20).Draw(t, "replicas")
		surge := rapid.SampledFrom([]string{"0", "1", "3", "25%", "100%"}).Draw(t, "maxSurge")
		unavailable := rapid.SampledFrom([]string{"0", "1", "2", "25%", "100%"}).Draw(t, "maxUnavailable")
		m := newModel(n, surge, unavailable)
		allowed := limitsOf(m.d)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			set := m.sets[rapid.IntRange(0, len(m.sets)-1).Draw(t, "set")]
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				m.edit(rapid.IntRange(1, 4).Draw(t, "image"))
			case 1, 2, 3:
				m.step()
			case 4, 5:
				m.follow(set)
			case 6, 7:
				m.ready(set)
			default:
				m.report(set)
			}
			m.clock = m.clock.Add(time.Second)
			if all, available := m.total(); all > n+allowed.surge || available < n-allowed.unavailable {
				t.Fatalf("%d pods, %d available, with %d replicas and %+v\n%s", all, available, n, allowed, strings.Join(m.log, "\n"))
			}
		}
		m.finish()
		if !isComplete(m.d, m.d.Status) {
			t.Fatalf("left alone, the rollout ends as %v\n%+v", m, m.d.Status)
		}
	})
}

// TestEveryHistoryEndsAsAsked also scales, pauses and loses pods.
func TestEveryHistoryEndsAsAsked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(5, "25%", "25%")
		if rapid.Bool().Draw(t, "recreate") {
			m.d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			set := m.sets[rapid.IntRange(0, len(m.sets)-1).Draw(t, "set")]
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				m.edit(rapid.IntRange(1, 4).Draw(t, "image"))
			case 1:
				*m.d.Spec.Replicas = rapid.Int32Range(0, 20).Draw(t, "replicas")
				m.d.Generation++
			case 2:
				m.d.Spec.Paused = !m.d.Spec.Paused
			case 3:
				pods := m.pods[set.UID]
				pods.waiting, pods.available = pods.waiting+pods.available, 0
			case 4, 5, 6:
				m.step()
			case 7:
				m.follow(set)
			case 8:
				m.ready(set)
			default:
				m.report(set)
			}
			m.clock = m.clock.Add(time.Second)
		}
		m.d.Spec.Paused = false
		m.finish()
		if !isComplete(m.d, m.d.Status) {
			t.Fatalf("%d replicas asked for, ends as %v\n%+v", *m.d.Spec.Replicas, m, m.d.Status)
		}
	})
}
