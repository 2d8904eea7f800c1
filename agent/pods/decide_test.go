package pods

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/agent/probes"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// print names every intention of a plan, one per line.
func (p plan) print() string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if p.mount {
		add("mount")
	}
	if p.sandbox != nil {
		add("sandbox #%d", p.sandbox.attempt)
	}
	for _, s := range p.start {
		add("start %s #%d", s.name, s.restartCount)
	}
	for _, k := range p.kill {
		add("kill %s within %v", k.id, k.grace)
	}
	for _, id := range append(p.remove, p.stopOrphans...) {
		add("remove %s", id)
	}
	for name, w := range p.waiting {
		add("%s waits: %s", name, w.reason)
	}
	if p.ending {
		add("ending")
	}
	if p.tearDown {
		add("tear down")
	}
	if p.erase {
		add("erase")
	}
	if p.again > 0 {
		add("again in %v", p.again)
	}
	return strings.Join(out, ", ")
}

// situation builds facts: a pod, and containers "name state", newest first.
type situation struct {
	pod        string
	noSandbox  bool
	containers []container
	change     func(*facts)
}

func (s situation) facts(t *testing.T) facts {
	f := facts{
		now: noon, pod: podFrom(t, s.pod), mounted: true,
		busy: map[string]bool{}, failures: map[string]failure{}, restart: map[string]bool{},
		probe:    func(string, probes.Kind) (probes.Result, bool) { return probes.Success, false },
		observed: observed{containers: map[string][]container{}},
	}
	f.limits = podResources(f.pod)
	if !s.noSandbox {
		f.observed.sandboxes = []sandbox{{id: "s0", ready: true}}
	}
	for _, c := range s.containers {
		if spec := containerSpec(f.pod, c.name); spec != nil && c.hash == "" {
			c.hash = hashOf(spec)
		}
		if c.sandboxID == "" {
			c.sandboxID = "s0"
		}
		f.observed.containers[c.name] = append(f.observed.containers[c.name], c)
	}
	if s.change != nil {
		s.change(&f)
	}
	return f
}

func running(name string) container {
	return container{id: name + "-id", name: name, state: stateRunning, created: noon.Add(-time.Minute), started: noon.Add(-time.Minute)}
}

func exited(name string, code int32, ago time.Duration) container {
	return container{id: name + "-id", name: name, state: stateExited, exitCode: code,
		created: noon.Add(-ago - time.Minute), finished: noon.Add(-ago)}
}

func deletedFor(grace int64) func(*facts) {
	return func(f *facts) {
		at := metav1.NewTime(noon.Add(time.Duration(grace) * time.Second))
		f.pod.DeletionTimestamp, f.pod.DeletionGracePeriodSeconds = &at, &grace
	}
}

func TestDecide(t *testing.T) {
	const (
		never   = "spec: {restartPolicy: Never, containers: [{name: app}]}"
		onError = "spec: {restartPolicy: OnFailure, containers: [{name: app}]}"
	)
	for name, test := range map[string]struct {
		situation
		want string
	}{
		"volumes come first": {situation{pod: plainPod, noSandbox: true, change: func(f *facts) { f.mounted = false }},
			"mount"},
		"then the sandbox": {situation{pod: plainPod, noSandbox: true},
			"sandbox #0"},
		"then the containers, all at once": {situation{pod: "spec: {containers: [{name: a}, {name: b}]}"},
			"start a #0, start b #0"},
		"nothing is begun twice": {situation{pod: plainPod, change: func(f *facts) { f.busy[startKey("app")] = true }},
			""},
		"a failed start waits": {situation{pod: plainPod, change: func(f *facts) {
			f.failures[startKey("app")] = failure{reason: reasonCreateError, at: noon.Add(-time.Minute), retry: noon.Add(3 * time.Second)}
		}}, "app waits: CreateContainerError, again in 3s"},
		"a running pod needs nothing": {situation{pod: plainPod, containers: []container{running("app")}},
			""},
		"the first restart is immediate": {situation{pod: plainPod, containers: []container{exited("app", 1, 0)}},
			"start app #1"},
		"later restarts back off": {situation{pod: plainPod, containers: []container{{id: "x", name: "app", state: stateExited,
			restartCount: 3, backoff: 40 * time.Second, created: noon.Add(-time.Minute), finished: noon.Add(-15 * time.Second)}}},
			"app waits: CrashLoopBackOff, again in 25s"},
		"a long life forgets the back-off": {situation{pod: plainPod, containers: []container{{id: "x", name: "app", state: stateExited,
			restartCount: 3, backoff: 40 * time.Second, created: noon.Add(-time.Hour), finished: noon}}},
			"start app #4"},
		"OnFailure leaves success alone": {situation{pod: onError, containers: []container{exited("app", 0, 0)}},
			"ending, tear down"},
		"OnFailure repeats failure": {situation{pod: onError, containers: []container{exited("app", 9, 0)}},
			"start app #1"},
		"Never repeats nothing": {situation{pod: never, containers: []container{exited("app", 9, 0)}},
			"ending, tear down"},
		"a container's own policy wins": {situation{pod: "spec: {restartPolicy: Never, containers: [{name: app, restartPolicy: OnFailure}]}",
			containers: []container{exited("app", 9, 0)}}, "start app #1"},
		"a restart rule matches an exit code": {situation{pod: `
spec:
  restartPolicy: Never
  containers:
  - {name: app, restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]}`,
			containers: []container{exited("app", 42, 0)}}, "start app #1"},
		"a dead liveness probe kills": {situation{pod: plainPod, containers: []container{running("app")}, change: func(f *facts) {
			f.probe = func(_ string, kind probes.Kind) (probes.Result, bool) {
				return probes.Failure, kind == probes.Liveness
			}
		}}, "kill app-id within 30s"},
		"a changed image kills": {situation{pod: plainPod, containers: []container{{id: "x", name: "app", state: stateRunning, hash: "old"}}},
			"kill x within 30s"},
		"a created container that was never started is replaced": {situation{pod: plainPod,
			containers: []container{{id: "x", name: "app", state: stateCreated, restartCount: 2}}}, "start app #2"},
		"a lost runtime continues the count": {situation{pod: plainPod + "status: {containerStatuses: [{name: app, containerID: \"containerd://x\", restartCount: 4}]}"},
			"start app #5"},
		"but does not count what never ran": {situation{pod: plainPod + "status: {containerStatuses: [{name: app, containerID: \"containerd://x\", state: {waiting: {}}}]}"},
			"start app #0"},
		"old instances are removed, but for the last": {situation{pod: plainPod, containers: []container{running("app"),
			{id: "1", name: "app", state: stateExited}, {id: "2", name: "app", state: stateExited}}}, "remove 2"},
		"a sandbox that died is followed by another": {situation{pod: plainPod, noSandbox: true, containers: []container{exited("app", 1, 0)},
			change: func(f *facts) { f.observed.sandboxes = []sandbox{{id: "s0", attempt: 4}} }}, "sandbox #5"},
		"but not for a pod that never restarts": {situation{pod: never, noSandbox: true, containers: []container{exited("app", 1, 0)},
			change: func(f *facts) { f.observed.sandboxes = []sandbox{{id: "s0"}} }}, "ending, tear down"},
		"the first init container is alone": {situation{pod: "spec: {initContainers: [{name: i}, {name: j}], containers: [{name: app}]}"},
			"start i #0"},
		"the app waits for the last one": {situation{pod: "spec: {initContainers: [{name: i}, {name: j}], containers: [{name: app}]}",
			containers: []container{exited("i", 0, 0), running("j")}}, ""},
		"forgotten init containers are not repeated": {situation{pod: "spec: {initContainers: [{name: i}], containers: [{name: a}, {name: b}]}",
			containers: []container{running("a")}}, "start b #0"},
		"a deleted pod is killed within its grace": {situation{pod: plainPod, containers: []container{running("app")}, change: deletedFor(7)},
			"kill app-id within 7s, ending"},
		"a deleted pod waits for its starts to stop": {situation{pod: plainPod, change: func(f *facts) {
			deletedFor(7)(f)
			f.busy[startKey("app")] = true
		}}, "ending"},
		"a dead pod is torn down": {situation{pod: plainPod, containers: []container{exited("app", 0, 0)}, change: deletedFor(7)},
			"ending, tear down"},
		"a pod the API forgot is erased": {situation{pod: plainPod, containers: []container{exited("app", 0, 0)}, change: func(f *facts) {
			f.gone, f.tornDown = true, true
			f.observed.sandboxes[0].ready = false
		}}, "ending, erase"},
		"a pod that finished stays for its logs": {situation{pod: never, containers: []container{exited("app", 0, 0)}, change: func(f *facts) {
			f.tornDown, f.pod.Status.Phase = true, corev1.PodSucceeded
			f.observed.sandboxes[0].ready = false
		}}, "ending"},
		"a sandbox that came late is torn down, too": {situation{pod: plainPod, change: func(f *facts) {
			f.gone, f.tornDown = true, true
		}}, "ending, tear down"},
		"a deadline is a timer": {situation{pod: "spec: {activeDeadlineSeconds: 60, containers: [{name: app}]}", containers: []container{running("app")},
			change: func(f *facts) { f.pod.Status.StartTime = seconds(noon.Add(-50 * time.Second)) }}, "again in 10s"},
		"sidecars outlive the app": {situation{pod: "spec: {initContainers: [{name: s, restartPolicy: Always}], containers: [{name: app}]}",
			containers: []container{running("s"), running("app")}, change: deletedFor(7)}, "kill app-id within 7s, ending"},
		"an ephemeral container needs its target": {situation{pod: `
spec:
  containers: [{name: app}]
  ephemeralContainers: [{name: debug, targetContainerName: app}]`,
			containers: []container{exited("app", 1, 0)}},
			"start app #1, debug waits: CreateContainerConfigError"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := decide(test.facts(t)).print(); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// TestDecideIsPure decides everything twice.
func TestDecideIsPure(t *testing.T) {
	f := situation{pod: plainPod, containers: []container{exited("app", 1, 0)}}.facts(t)
	before := f.pod.DeepCopy()
	if first, second := decide(f).print(), decide(f).print(); first != second {
		t.Errorf("%s, then %s", first, second)
	}
	if f.pod.String() != before.String() {
		t.Error("the pod was modified")
	}
}
