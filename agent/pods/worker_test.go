package pods

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/cri"
)

func TestAgentIsReadyOnceItKnowsItsPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		if err := c.manager.Ready(); err != nil {
			t.Errorf("running: %v", err)
		}
		c.stop()

		// After a restart, with a runtime that does not answer yet.
		wakes := 0
		c.onReady = func() { wakes++ }
		var answers atomic.Bool
		c.runtime.Fail = func(call, _ string) error {
			if call == "Sandboxes" && !answers.Load() {
				return errors.New("connection refused")
			}
			return nil
		}
		c.start()
		defer func() { c.stop() }()
		if err := c.manager.Ready(); err == nil || !strings.Contains(err.Error(), "runtime") {
			t.Errorf("without the runtime: %v", err)
		}
		answers.Store(true)
		sleep(observeRetry)
		if err := c.manager.Ready(); err != nil || wakes != 1 {
			t.Errorf("with the runtime: %v, told %d times", err, wakes)
		}
	})
}

// lateRuntime does something after it has listed containers.
type lateRuntime struct {
	cri.Runtime
	then func()
}

func (r lateRuntime) Containers(ctx context.Context, selector map[string]string) ([]*runtimeapi.Container, error) {
	list, err := r.Runtime.Containers(ctx, selector)
	r.then()
	return list, err
}

func TestWhatAnOperationDidIsSeenOnceItHasEnded(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		pod := podFrom(t, plainPod)
		w := newWorker(c.manager, pod)
		sandboxID, err := c.runtime.RunPodSandbox(t.Context(), &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "web"}, Labels: map[string]string{labelPodUID: string(pod.UID)}}, "")
		if err != nil {
			t.Fatal(err)
		}
		// A start ends right after the containers were listed without its own.
		begun, ended := make(chan struct{}), make(chan struct{})
		op := w.begin(t.Context(), startKey("app"), func(context.Context) error {
			<-begun
			_, err := c.runtime.CreateContainer(t.Context(), sandboxID, &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: "app"}, Image: &runtimeapi.ImageSpec{},
				Labels: map[string]string{labelPodUID: string(pod.UID), labelContainerName: "app"}}, nil)
			return err
		})
		go func() { <-op.done; close(ended) }()
		var once sync.Once
		c.manager.cfg.Runtime = lateRuntime{c.runtime, func() { once.Do(func() { close(begun); <-ended }) }}
		f, err := w.read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if f.observed.latest("app") == nil && !f.busy[startKey("app")] {
			t.Error("the container is neither seen nor being started: it would be started twice")
		}
	})
}

func TestEachCauseOfAFailedMountIsReportedOnceAndRarelyAgain(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		mounts := func() (events []string) {
			for _, e := range c.drainEvents() {
				if cause, ok := strings.CutPrefix(e, "Warning FailedMount "); ok {
					events = append(events, cause)
				}
			}
			slices.Sort(events)
			return events
		}
		want := func(when string, causes ...string) {
			t.Helper()
			if got := mounts(); !slices.Equal(got, causes) {
				t.Errorf("%s: events %q, want %q", when, got, causes)
			}
		}
		a, b := errors.New("a: not found"), errors.New("b: not found")
		c.volumes.failWith(errors.Join(a, b))
		c.apply(plainPod)
		want("at first", "a: not found", "b: not found")
		sleep(time.Minute)
		want("while nothing changes")
		c.volumes.failWith(errors.Join(a, errors.New("b: forbidden")))
		sleep(20 * time.Second)
		want("with a new cause", "b: forbidden")
		sleep(50 * time.Second)
		want("two minutes after the first", "a: not found")
	})
}

func TestLogsOfForgottenInstancesGoWithTheirRotatedParts(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		dir := filepath.Join(c.dir, "logs", "default_web_uid-web", "app")
		c.runtime.Script = func(config *runtimeapi.ContainerConfig) cri.Behaviour {
			live := filepath.Join(filepath.Dir(dir), config.LogPath)
			for _, file := range []string{live, live + ".20260101-000001.000000000"} {
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					t.Error(err)
				}
			}
			return cri.Behaviour{Exits: true, ExitCode: 1}
		}
		c.apply(plainPod)
		sleep(35 * time.Second) // started at 0, 0, 10 and 30 s
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		want := "2.log 2.log.20260101-000001.000000000 3.log 3.log.20260101-000001.000000000"
		if got := strings.Join(names, " "); got != want {
			t.Errorf("logs %s, want %s", got, want)
		}
	})
}
