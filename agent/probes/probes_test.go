package probes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// world is a node with one pod whose exec checks answer what the test wants, and a log of what happened when.
type world struct {
	prober *Prober
	start  time.Time
	pod    *corev1.Pod

	mu     sync.Mutex
	exit   map[string]int // by command
	takes  time.Duration
	failed error
	runs   map[string][]time.Duration // by command, since start
	events []string
	wakes  int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		start: time.Now(),
		exit:  map[string]int{},
		runs:  map[string][]time.Duration{},
		pod:   &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "uid-1"}},
	}
	prober, err := New(Config{
		Exec:    w.exec,
		Changed: func(types.UID) { w.mu.Lock(); w.wakes++; w.mu.Unlock() },
		Event: func(_ *corev1.Pod, container, eventType, reason, message string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, fmt.Sprintf("%s %s %s: %s", container, eventType, reason, message))
		},
		Jitter: func(limit time.Duration) time.Duration { return limit / 2 },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.prober = prober
	t.Cleanup(func() { prober.Remove(w.pod.UID) })
	return w
}

func (w *world) exec(ctx context.Context, _ string, cmd []string, timeout time.Duration) (int, []byte, error) {
	name := strings.Join(cmd, " ")
	w.mu.Lock()
	w.runs[name] = append(w.runs[name], time.Since(w.start))
	exit, takes, failed := w.exit[name], w.takes, w.failed
	w.mu.Unlock()
	if takes > timeout {
		sleep(ctx, timeout)
		return 0, nil, context.DeadlineExceeded
	}
	sleep(ctx, takes)
	return exit, []byte("out of " + name), failed
}

func (w *world) answer(command string, exit int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.exit[command] = exit
}

func (w *world) ranAt(command string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprint(w.runs[command])
}

func (w *world) takeEvents() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

func (w *world) target(id string, c corev1.Container) Target {
	c.Name = "app"
	return Target{PodUID: w.pod.UID, Pod: w.pod, Container: c, ContainerID: id, PodIP: "127.0.0.1", StartedAt: time.Now()}
}

func command(name string, change ...func(*corev1.Probe)) *corev1.Probe {
	p := &corev1.Probe{PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3}
	p.Exec = &corev1.ExecAction{Command: []string{name}}
	for _, c := range change {
		c(p)
	}
	return p
}

func (w *world) stands(t *testing.T, id string, kind Kind, want string) {
	t.Helper()
	synctest.Wait()
	got := "unknown"
	if r, known := w.prober.Result(id, kind); known {
		got = r.String()
	}
	if got != want {
		t.Errorf("after %s: %s of %s is %s, want %s", time.Since(w.start), kind, id, got, want)
	}
}

func TestResultsBeforeTheFirstCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		late := func(p *corev1.Probe) { p.InitialDelaySeconds = 60 }
		w.prober.Sync([]Target{w.target("c1", corev1.Container{
			StartupProbe: command("s", late), LivenessProbe: command("l", late), ReadinessProbe: command("r", late),
		})})
		w.stands(t, "c1", Startup, "unknown")
		w.stands(t, "c1", Liveness, "success")
		w.stands(t, "c1", Readiness, "failure")
		w.stands(t, "c2", Readiness, "unknown")
	})
}

func TestAContainerWithoutChecksHasNoResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.prober.Sync([]Target{w.target("c1", corev1.Container{})})
		for _, kind := range []Kind{Startup, Liveness, Readiness} {
			w.stands(t, "c1", kind, "unknown")
		}
	})
}

func TestFirstCheckFollowsTheInitialDelayAndThenEveryPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.takes = 300 * time.Millisecond
		w.prober.Sync([]Target{w.target("c1", corev1.Container{
			ReadinessProbe: command("r", func(p *corev1.Probe) { p.InitialDelaySeconds, p.PeriodSeconds = 7, 4 }),
		})})
		time.Sleep(16 * time.Second)
		if got := w.ranAt("r"); got != "[7s 11s 15s]" {
			t.Errorf("checks ran at %s", got)
		}
	})
}

func TestThresholdsCountConsecutiveOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.prober.Sync([]Target{w.target("c1", corev1.Container{
			ReadinessProbe: command("r", func(p *corev1.Probe) { p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold = 1, 2, 3 }),
		})})
		half := 500 * time.Millisecond
		time.Sleep(half)
		w.stands(t, "c1", Readiness, "failure") // one success of two
		time.Sleep(time.Second)
		w.stands(t, "c1", Readiness, "success")
		w.answer("r", 1)
		time.Sleep(2 * time.Second)
		w.stands(t, "c1", Readiness, "success") // two failures of three
		w.answer("r", 0)
		time.Sleep(time.Second)
		w.answer("r", 1)
		time.Sleep(2 * time.Second)
		w.stands(t, "c1", Readiness, "success") // a success in between starts the count anew
		time.Sleep(time.Second)
		w.stands(t, "c1", Readiness, "failure")
		if w.wakes != 2 {
			t.Errorf("the pod was woken %d times, want 2", w.wakes)
		}
	})
}

func TestLivenessFailureEndsTheCheckUntilTheContainerIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answer("l", 1)
		c := corev1.Container{LivenessProbe: command("l", func(p *corev1.Probe) { p.FailureThreshold = 2 })}
		w.prober.Sync([]Target{w.target("c1", c)})
		time.Sleep(time.Minute)
		w.stands(t, "c1", Liveness, "failure")
		if got := w.ranAt("l"); got != "[0s 10s]" {
			t.Errorf("checks ran at %s", got)
		}
		w.prober.Sync([]Target{w.target("c2", c)})
		w.stands(t, "c2", Liveness, "success")
		w.stands(t, "c1", Liveness, "unknown")
		if events := w.takeEvents(); events[0] != "app Warning Unhealthy: Liveness probe failed: out of l" {
			t.Errorf("events: %q", events)
		}
	})
}

func TestOtherChecksWaitForStartup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answer("s", 1)
		w.prober.Sync([]Target{w.target("c1", corev1.Container{
			StartupProbe:   command("s", func(p *corev1.Probe) { p.PeriodSeconds, p.FailureThreshold = 2, 10 }),
			LivenessProbe:  command("l"),
			ReadinessProbe: command("r"),
		})})
		time.Sleep(5 * time.Second)
		w.stands(t, "c1", Startup, "unknown")
		w.answer("s", 0)
		time.Sleep(2 * time.Second)
		w.stands(t, "c1", Startup, "success")
		w.stands(t, "c1", Readiness, "success")
		if got := w.ranAt("s") + w.ranAt("l") + w.ranAt("r"); got != "[0s 2s 4s 6s][6s][6s]" {
			t.Errorf("checks ran at %s", got)
		}
	})
}

func TestStartupThatNeverPassesFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answer("s", 1)
		w.prober.Sync([]Target{w.target("c1", corev1.Container{StartupProbe: command("s"), ReadinessProbe: command("r")})})
		time.Sleep(time.Minute)
		w.stands(t, "c1", Startup, "failure")
		if got := w.ranAt("s") + w.ranAt("r"); got != "[0s 10s 20s][]" {
			t.Errorf("checks ran at %s", got)
		}
	})
}

func TestDeletionQuietensLivenessButNotReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		target := w.target("c1", corev1.Container{LivenessProbe: command("l"), ReadinessProbe: command("r")})
		w.prober.Sync([]Target{target})
		time.Sleep(time.Second)
		target.Pod = target.Pod.DeepCopy()
		target.Pod.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		w.prober.Sync([]Target{target})
		w.answer("l", 1)
		w.answer("r", 1)
		time.Sleep(time.Minute)
		w.stands(t, "c1", Liveness, "success")
		w.stands(t, "c1", Readiness, "failure")
	})
}

func TestACheckTakenOutOfTheTargetStopsAndCountsAsPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answer("s", 1)
		target := w.target("c1", corev1.Container{StartupProbe: command("s"), LivenessProbe: command("l"), ReadinessProbe: command("r")})
		w.prober.Sync([]Target{target})
		time.Sleep(time.Second)
		target.Container.StartupProbe, target.Container.LivenessProbe = nil, nil
		w.prober.Sync([]Target{target})
		time.Sleep(time.Minute)
		w.stands(t, "c1", Startup, "success")
		w.stands(t, "c1", Liveness, "success")
		w.stands(t, "c1", Readiness, "success")
		if got := w.ranAt("s") + w.ranAt("l"); got != "[0s][]" {
			t.Errorf("checks ran at %s", got)
		}
	})
}

func TestARestartedAgentFlipsNoCondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		started := true
		startedAt := time.Now()
		time.Sleep(time.Hour)
		w := newWorld(t)
		w.pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
			Name: "app", ContainerID: "containerd://c1", Ready: true, Started: &started,
		}}
		target := w.target("c1", corev1.Container{StartupProbe: command("s"), ReadinessProbe: command("r")})
		target.StartedAt = startedAt
		w.prober.Sync([]Target{target})
		w.stands(t, "c1", Startup, "success")
		w.stands(t, "c1", Readiness, "success")
		time.Sleep(6 * time.Second)
		if got := w.ranAt("s") + w.ranAt("r"); got != "[][5s]" {
			t.Errorf("checks ran at %s, want none of startup and a jittered one of readiness", got)
		}
	})
}

func TestTheStatusOfAFormerContainerDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", ContainerID: "containerd://c0", Ready: true}}
		w.prober.Sync([]Target{w.target("c1", corev1.Container{
			ReadinessProbe: command("r", func(p *corev1.Probe) { p.InitialDelaySeconds = 5 }),
		})})
		w.stands(t, "c1", Readiness, "failure")
	})
}

func TestACommandThatTakesTooLongFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.takes = 5 * time.Second
		w.prober.Sync([]Target{w.target("c1", corev1.Container{
			LivenessProbe: command("l", func(p *corev1.Probe) { p.FailureThreshold = 1 }),
		})})
		time.Sleep(2 * time.Second)
		w.stands(t, "c1", Liveness, "failure")
		want := `app Warning Unhealthy: Liveness probe failed: command timed out: "l" timed out after 1s`
		if events := w.takeEvents(); len(events) != 1 || events[0] != want {
			t.Errorf("events: %q", events)
		}
	})
}

func TestACheckThatCannotBeCarriedOutCountsNeitherWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.failed = fmt.Errorf("container runtime is down")
		w.prober.Sync([]Target{w.target("c1", corev1.Container{
			LivenessProbe: command("l", func(p *corev1.Probe) { p.FailureThreshold = 1 }),
		})})
		time.Sleep(time.Second)
		w.stands(t, "c1", Liveness, "success")
		want := "app Warning Unhealthy: Liveness probe errored and resulted in unknown state: container runtime is down"
		if events := w.takeEvents(); len(events) != 1 || events[0] != want {
			t.Errorf("events: %q", events)
		}
		if got := w.ranAt("l"); got != "[0s 0s 0s]" {
			t.Errorf("checks ran at %s, want three attempts", got)
		}
	})
}

func TestSyncStopsWhatIsNoLongerATarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.target("a", corev1.Container{ReadinessProbe: command("ra")})
		b := w.target("b", corev1.Container{ReadinessProbe: command("rb")})
		w.prober.Sync([]Target{a, b})
		w.prober.Sync([]Target{b, a})
		time.Sleep(time.Second)
		w.prober.Sync([]Target{b})
		time.Sleep(10 * time.Second)
		if got := w.ranAt("ra") + w.ranAt("rb"); got != "[0s][0s 10s]" {
			t.Errorf("checks ran at %s", got)
		}
		w.stands(t, "a", Readiness, "unknown")
		w.prober.Remove(w.pod.UID)
		w.stands(t, "b", Readiness, "unknown")
	})
}

func TestGracePeriod(t *testing.T) {
	ten, twenty := int64(10), int64(20)
	plain, own := &corev1.Probe{}, &corev1.Probe{TerminationGracePeriodSeconds: &ten}
	for name, test := range map[string]struct {
		pod       corev1.PodSpec
		container corev1.Container
		want      time.Duration
	}{
		"a check's own period comes first":          {corev1.PodSpec{TerminationGracePeriodSeconds: &twenty}, corev1.Container{LivenessProbe: own}, 10 * time.Second},
		"else the pod's":                            {corev1.PodSpec{TerminationGracePeriodSeconds: &twenty}, corev1.Container{LivenessProbe: plain}, 20 * time.Second},
		"else 30 seconds":                           {corev1.PodSpec{}, corev1.Container{LivenessProbe: plain}, 30 * time.Second},
		"that of another check does not count":      {corev1.PodSpec{}, corev1.Container{StartupProbe: own, LivenessProbe: plain}, 30 * time.Second},
		"a container without the check is no fault": {corev1.PodSpec{}, corev1.Container{}, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if got := GracePeriod(&corev1.Pod{Spec: test.pod}, &test.container, Liveness); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestNewRefusesAConfigWithHoles(t *testing.T) {
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "Exec") {
		t.Errorf("got %v", err)
	}
}
