package reconcile

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// flood makes n occurrences of one reason, each with a message of its own, a second apart.
func flood(reason string, n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("1s web %s m%d", reason, i+1))
	}
	return list
}

func TestFolding(t *testing.T) {
	cases := []struct {
		name string
		// after, object, reason, message
		occurrences []string
		wantEvents  int
		// new or again, reason, count, message
		wantLast string
	}{
		{"the first of its kind is new", []string{"0s web Created a"},
			1, "new Created x1 a"},
		{"the same once more is counted", []string{"0s web Created a", "1s web Created a"},
			1, "again Created x2 a"},
		{"the same is counted however much later it comes", []string{"0s web Created a", "20h web Created a"},
			1, "again Created x2 a"},
		{"another message is new", []string{"0s web Created a", "0s web Created b"},
			2, "new Created x1 b"},
		{"another object is new", []string{"0s web Created a", "0s db Created a"},
			2, "new Created x1 a"},
		{"another version of the object is the same object", []string{"0s web@1 Created a", "0s web@2 Created a"},
			1, "again Created x2 a"},
		{"ten messages are told one by one", flood("Created", 10),
			10, "new Created x1 m10"},
		{"the eleventh starts to combine, and need not be told at once", flood("Created", 11),
			11, "again Created x1 (combined from similar events): m11"},
		{"all others are combined", flood("Created", 500),
			11, "again Created x490 (combined from similar events): m500"},
		{"a message that was told is counted on its own during a flood", append(flood("Created", 500), "0s web Created m3"),
			11, "again Created x2 m3"},
		{"another reason is new during a flood", append(flood("Created", 500), "0s web Completed done"),
			12, "new Completed x1 done"},
		{"a new message is told again when it was quiet for more than ten minutes", append(flood("Created", 500), "601s web Created later"),
			12, "new Created x1 later"},
		{"messages are combined as long as it was never quiet for ten minutes", append(flood("Created", 500), "600s web Created m501"),
			11, "again Created x491 (combined from similar events): m501"},
		{"a second flood goes on counting", append(flood("Created", 500), append([]string{"601s web Created x"}, flood("Created", 500)...)...),
			12, "again Created x981 (combined from similar events): m500"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f, at, names, last := newFolding(), time.Unix(1e9, 0), map[string]bool{}, ""
			for _, text := range c.occurrences {
				word := strings.Fields(text)
				after, err := time.ParseDuration(word[0])
				if err != nil {
					t.Fatal(err)
				}
				at = at.Add(after)
				object, version, _ := strings.Cut(word[1], "@")
				tally, isNew := f.fold(occurrence{
					about:    corev1.ObjectReference{Kind: "Job", Name: object, ResourceVersion: version},
					severity: corev1.EventTypeNormal, reason: word[2], message: word[3], at: at,
				})
				names[tally.name] = true
				what := "again"
				if isNew {
					what = "new"
				}
				last = fmt.Sprintf("%s %s x%d %s", what, tally.reason, tally.count, tally.latest)
				if !tally.last.Equal(at) {
					t.Errorf("%s: the last time is %v, not %v", text, tally.last, at)
				}
			}
			if len(names) != c.wantEvents || last != c.wantLast {
				t.Errorf("%d Events, the last is %q; want %d, %q", len(names), last, c.wantEvents, c.wantLast)
			}
		})
	}
}

func TestFoldingForgetsTheLeastRecent(t *testing.T) {
	f := newFolding()
	for i := range 3 * maxRemembered {
		f.fold(occurrence{reason: fmt.Sprint("R", i)})
	}
	if f.recent.Len() != maxRemembered || f.tallies.Len() != maxRemembered {
		t.Errorf("remembers %d topics and %d tallies", f.recent.Len(), f.tallies.Len())
	}
	if again, isNew := f.fold(occurrence{reason: fmt.Sprint("R", 3*maxRemembered-1)}); isNew || again.count != 2 {
		t.Error("forgot the most recent")
	}
	if again, isNew := f.fold(occurrence{reason: "R0"}); !isNew || again.count != 1 {
		t.Error("remembers the first")
	}
}

func TestAnEventIsWhatClientGoMakes(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		now := metav1.NewTime(time.Now().Truncate(time.Second).Local())
		s.events.Recorder().AnnotatedEventf(job("web"), map[string]string{"a": "b"}, corev1.EventTypeWarning, "Failed", "%d pods", 3)
		synctest.Wait()
		got := s.list()[0]
		want := corev1.Event{
			ObjectMeta:          metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("web.%x", now.UnixNano()), Annotations: map[string]string{"a": "b"}},
			InvolvedObject:      corev1.ObjectReference{APIVersion: "batch/v1", Kind: "Job", Namespace: "ns", Name: "web", UID: "web-uid", ResourceVersion: "7"},
			Type:                corev1.EventTypeWarning,
			Reason:              "Failed",
			Message:             "3 pods",
			Source:              corev1.EventSource{Component: "test-controller"},
			ReportingController: "test-controller",
			FirstTimestamp:      now,
			LastTimestamp:       now,
			Count:               1,
		}
		if got.String() != want.String() {
			t.Errorf("got  %v\nwant %v", got.String(), want.String())
		}
	})
}

func TestOnlyTheEventOfOneMessageIsAnnotated(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		for i := range maxMessages + 1 {
			s.events.Recorder().AnnotatedEventf(job("web"), map[string]string{"pod": fmt.Sprint(i)}, corev1.EventTypeNormal, "Created", "pod %d", i)
		}
		time.Sleep(holdBack)
		synctest.Wait()
		for i, e := range s.list() {
			if want := fmt.Sprint(i); i < maxMessages && e.Annotations["pod"] != want || i == maxMessages && e.Annotations != nil {
				t.Errorf("%q is annotated with %v", e.Message, e.Annotations)
			}
		}
	})
}

func TestEventsOfClusterScopedObjectsAreInTheDefaultNamespace(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.events.Normal(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, "Ready", "yes")
		s.events.Recorder().Event(&corev1.ObjectReference{Kind: "Node", Name: "m"}, corev1.EventTypeNormal, "Ready", "yes")
		s.want(2, "Ready x1 yes", "Ready x1 yes")
		for _, e := range s.list() {
			if e.Namespace != "default" || e.InvolvedObject.Namespace != "" || e.InvolvedObject.Kind != "Node" {
				t.Errorf("in namespace %q, about %v", e.Namespace, e.InvolvedObject)
			}
		}
	})
}

func TestWhatCannotBeRecordedIsLeftOut(t *testing.T) {
	withEvents(t, func(t *testing.T, s *apiServer) {
		s.events.Normal(nil, "Created", "a")
		s.events.Recorder().Event(job("web"), "Grave", "Created", "a")
		s.want(0)
	})
}
