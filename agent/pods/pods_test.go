package pods

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/cri"
	"weft.dev/weft/agent/probes"
)

const plainPod = `
spec:
  containers: [{name: app}]
`

func TestPlainPodRuns(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(plainPod)
		c.wantRuntime(`
sandbox default/web #0 ready
  container app #0 running`)
		c.wantStatus(`
Running [ContainersReady Initialized PodReadyToStartContainers Ready]
app: running, ready`)
		c.wantEvent("Normal Started Container started")
		pod := c.get()
		if pod.Status.PodIP == "" || pod.Status.HostIP != "172.30.0.1" || pod.Status.ObservedGeneration != 1 || pod.Status.StartTime == nil {
			t.Errorf("addresses, generation or start are missing: %+v", pod.Status)
		}
	})
}

func TestDeletedPodLeavesNothing(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(plainPod)
		c.delete(30)
		if pod := c.get(); pod != nil {
			t.Errorf("pod is still there: %s", printStatus(&pod.Status))
		}
		if left := c.leftovers(); left != "" {
			t.Errorf("left behind:\n%s", left)
		}
		c.wantEvent("Normal Killing Stopping container app")
	})
}

func TestStubbornContainerIsKilledAfterItsGrace(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.runtime.Script = func(*runtimeapi.ContainerConfig) cri.Behaviour { return cri.Behaviour{Stubborn: true} }
		c.apply(plainPod)
		c.delete(30)
		sleep(29 * time.Second)
		c.wantStatus(`
Running [ContainersReady Initialized PodReadyToStartContainers Ready]
app: running, ready`)
		sleep(2 * time.Second)
		if c.get() != nil {
			t.Error("pod outlives its grace")
		}
	})
}

func TestShorterGraceOvertakesALongerOne(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.runtime.Script = func(*runtimeapi.ContainerConfig) cri.Behaviour { return cri.Behaviour{Stubborn: true} }
		c.apply(plainPod)
		c.delete(300)
		sleep(time.Second)
		c.delete(3)
		sleep(4 * time.Second)
		if c.get() != nil {
			t.Error("pod outlives the shorter grace")
		}
	})
}

func TestRestartedAgentTakesOverWhatRuns(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(`
spec:
  containers: [{name: app, readinessProbe: {exec: {command: ["true"]}}}]
`)
		c.prober.set(t, "app", probes.Readiness, probes.Success)
		before := c.get()
		c.stop()
		clear(c.prober.results) // nothing has been probed yet
		sleep(time.Hour)
		c.start()
		c.wantRuntime(`
sandbox default/web #0 ready
  container app #0 running`)
		after := c.get()
		if printStatus(&before.Status) != printStatus(&after.Status) {
			t.Errorf("status changed from\n%sto\n%s", printStatus(&before.Status), printStatus(&after.Status))
		}
		for i := range before.Status.Conditions {
			if !before.Status.Conditions[i].LastTransitionTime.Equal(&after.Status.Conditions[i].LastTransitionTime) {
				t.Errorf("condition %s flipped", before.Status.Conditions[i].Type)
			}
		}
	})
}

func TestPodDeletedWhileTheAgentWasAwayIsCleanedUp(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(plainPod)
		c.stop()
		if err := c.client.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("pods"), "default", "web"); err != nil {
			t.Fatal(err)
		}
		c.start()
		sleep(time.Minute)
		if left := c.leftovers(); left != "" {
			t.Errorf("left behind:\n%s", left)
		}
	})
}

func TestCrashLoopBacksOffTenSecondsDoublingToFiveMinutes(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		var starts []time.Time
		c.runtime.Script = func(*runtimeapi.ContainerConfig) cri.Behaviour {
			starts = append(starts, time.Now())
			return cri.Behaviour{Exits: true, ExitCode: 1}
		}
		c.apply(plainPod)
		sleep(5 * time.Second)
		c.wantStatus(`
Running [Initialized PodReadyToStartContainers]
app: waiting CrashLoopBackOff, restarts 1, last terminated 1 Error`)
		c.wantEvent("Warning BackOff Back-off restarting failed container app")
		sleep(30 * time.Minute)
		want := []int{0, 10, 20, 40, 80, 160, 300, 300, 300}
		for i, seconds := range want {
			if got := starts[i+1].Sub(starts[i]); got.Round(time.Second) != time.Duration(seconds)*time.Second {
				t.Errorf("restart %d after %v, want %d s", i+1, got, seconds)
			}
		}
		c.wantRuntime(`
sandbox default/web #0 ready
  container app #9 exited 1
  container app #10 exited 1`)
	})
}

func TestBackOffOutlivesTheAgent(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.runtime.Script = func(*runtimeapi.ContainerConfig) cri.Behaviour {
			return cri.Behaviour{Exits: true, ExitCode: 1, After: time.Second}
		}
		c.apply(plainPod)
		sleep(75 * time.Second) // the fourth restart waits for 80 s
		c.stop()
		c.start()
		c.wantStatus(`
Running [Initialized PodReadyToStartContainers]
app: waiting CrashLoopBackOff, restarts 4, last terminated 1 Error`)
	})
}

func TestContainersOfAFinishedPodStay(t *testing.T) {
	for name, test := range map[string]struct {
		code int32
		want string
	}{
		"exit 0 succeeds": {0, "Succeeded [Initialized]\napp: terminated 0 Completed"},
		"exit 3 fails":    {3, "Failed [Initialized]\napp: terminated 3 Error"},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				c.runtime.Script = func(*runtimeapi.ContainerConfig) cri.Behaviour {
					return cri.Behaviour{Exits: true, After: time.Second, ExitCode: test.code}
				}
				c.apply("spec: {restartPolicy: Never, containers: [{name: app}]}")
				sleep(2 * time.Second)
				c.wantStatus(test.want)
				if len(c.volumes.snapshot())+len(c.cgroups.list()) > 0 {
					t.Error("volumes or cgroup of a finished pod are still there")
				}
				c.delete(30)
				if left := c.leftovers(); left != "" {
					t.Errorf("left behind:\n%s", left)
				}
			})
		})
	}
}

func TestInitContainersRunOneAfterAnother(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		failures := 2
		c.runtime.Script = func(config *runtimeapi.ContainerConfig) cri.Behaviour {
			switch {
			case config.Metadata.Name == "first" && failures > 0:
				failures--
				return cri.Behaviour{Exits: true, ExitCode: 1, After: time.Second}
			case config.Metadata.Name != "app":
				return cri.Behaviour{Exits: true, After: time.Second}
			}
			return cri.Behaviour{}
		}
		c.apply("spec: {initContainers: [{name: first}, {name: second}], containers: [{name: app}]}")
		c.wantStatus(`
Pending [PodReadyToStartContainers]
first: running
second: waiting PodInitializing
app: waiting PodInitializing`)
		sleep(5 * time.Second)
		c.wantStatus(`
Pending [PodReadyToStartContainers]
first: waiting CrashLoopBackOff, restarts 1, last terminated 1 Error
second: waiting PodInitializing
app: waiting PodInitializing`)
		sleep(time.Minute)
		c.wantStatus(`
Running [ContainersReady Initialized PodReadyToStartContainers Ready]
first: terminated 0 Completed, restarts 2, last terminated 1 Error, ready
second: terminated 0 Completed, ready
app: running, ready`)
	})
}

func TestFailedInitContainerFailsAPodThatNeverRestarts(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.runtime.Script = func(*runtimeapi.ContainerConfig) cri.Behaviour { return cri.Behaviour{Exits: true, ExitCode: 1} }
		c.apply("spec: {restartPolicy: Never, initContainers: [{name: init}], containers: [{name: app}]}")
		sleep(time.Second)
		c.wantStatus(`
Failed []
init: terminated 1 Error
app: waiting PodInitializing`)
	})
}

const sidecarPod = `
spec:
  restartPolicy: Never
  initContainers:
  - {name: proxy, restartPolicy: Always, startupProbe: {exec: {command: ["true"]}}}
  - {name: init}
  - {name: logs, restartPolicy: Always}
  containers: [{name: app}]
`

func TestSidecarsStartInOrderAndStopInReverse(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.runtime.Script = func(config *runtimeapi.ContainerConfig) cri.Behaviour {
			return cri.Behaviour{Exits: config.Metadata.Name == "init", Stubborn: true}
		}
		c.apply(sidecarPod)
		c.wantRuntime(`
sandbox default/web #0 ready
  container proxy #0 running`)
		c.prober.set(t, "proxy", probes.Startup, probes.Success)
		sleep(time.Second)
		c.wantRuntime(`
sandbox default/web #0 ready
  container proxy #0 running
  container init #0 exited 0
  container logs #0 running
  container app #0 running`)
		c.runtime.ExitNamed("app", 0)
		sleep(time.Second)
		c.wantRuntime(`
sandbox default/web #0 ready
  container proxy #0 running
  container init #0 exited 0
  container logs #0 running
  container app #0 exited 0`)
		sleep(30 * time.Second)
		c.wantRuntime(`
sandbox default/web #0 ready
  container proxy #0 running
  container init #0 exited 0
  container logs #0 exited 137
  container app #0 exited 0`)
		sleep(30 * time.Second)
		c.wantStatus(`
Succeeded [Initialized]
proxy: terminated 137 Error
init: terminated 0 Completed, ready
logs: terminated 137 Error
app: terminated 0 Completed`)
	})
}

func TestUnhealthyContainerIsRestarted(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply("spec: {containers: [{name: app, livenessProbe: {exec: {command: [\"true\"]}}}]}")
		c.prober.set(t, "app", probes.Liveness, probes.Failure)
		c.wantEvent("Normal Killing Container app failed liveness probe, will be restarted")
		c.wantStatus(`
Running [ContainersReady Initialized PodReadyToStartContainers Ready]
app: running, restarts 1, last terminated 143 Error, ready`)
	})
}

func TestReadinessFollowsItsProbe(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply("spec: {containers: [{name: app, readinessProbe: {exec: {command: [\"true\"]}}}]}")
		c.wantStatus("Running [Initialized PodReadyToStartContainers]\napp: running")
		c.prober.set(t, "app", probes.Readiness, probes.Success)
		c.wantStatus("Running [ContainersReady Initialized PodReadyToStartContainers Ready]\napp: running, ready")
		c.prober.set(t, "app", probes.Readiness, probes.Failure)
		c.wantStatus("Running [Initialized PodReadyToStartContainers]\napp: running")
	})
}

func TestImageThatCannotBePulled(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.runtime.Missing["nowhere/x:1"] = true
		pulls := 0
		c.runtime.Fail = func(call, _ string) error {
			if call == "PullImage" && pulls < 2 {
				pulls++
				return errors.New("no such host")
			}
			return nil
		}
		c.apply("spec: {containers: [{name: app, image: \"nowhere/x:1\"}]}")
		c.wantStatus("Pending [Initialized PodReadyToStartContainers]\napp: waiting ErrImagePull")
		sleep(5 * time.Second)
		c.wantStatus("Pending [Initialized PodReadyToStartContainers]\napp: waiting ImagePullBackOff")
		c.wantEvent("Warning Failed Failed to pull image")
		sleep(time.Minute)
		c.wantStatus("Running [ContainersReady Initialized PodReadyToStartContainers Ready]\napp: running, ready")
	})
}

func TestImageVolumeIsPulledAndMountedByTheRuntime(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.runtime.Missing["data:1"] = true
		c.apply(`
spec:
  containers: [{name: app, volumeMounts: [{name: data, mountPath: /data, subPath: docs}]}]
  volumes: [{name: data, image: {reference: "data:1", pullPolicy: IfNotPresent}}]`)
		c.wantStatus("Running [ContainersReady Initialized PodReadyToStartContainers Ready]\napp: running, ready")
		c.wantEvent(`Normal Pulled Successfully pulled image "data:1"`)
		list, err := c.runtime.Containers(t.Context(), nil)
		if err != nil || len(list) != 1 {
			t.Fatalf("containers %v, %v", list, err)
		}
		status, err := c.runtime.ContainerStatus(t.Context(), list[0].Id)
		if err != nil {
			t.Fatal(err)
		}
		mount := status.Mounts[0]
		if mount.Image.GetUserSpecifiedImage() != "data:1" || mount.ImageSubPath != "docs" || !mount.Readonly || mount.ContainerPath != "/data" || mount.HostPath != "" {
			t.Errorf("mount is %v", mount)
		}
	})
}

func TestWaitingReasons(t *testing.T) {
	for name, test := range map[string]struct{ pod, want string }{
		"never pulled":                {`{name: app, image: "gone:1", imagePullPolicy: Never}`, reasonErrImageNeverPull},
		"volume's image never pulled": {`{name: app, volumeMounts: [{name: data, mountPath: /data}]}], volumes: [{name: data, image: {reference: "gone:1", pullPolicy: Never}}`, reasonErrImageNeverPull},
		"bad name":                    {`{name: app, image: "UPPER:1"}`, reasonInvalidImageName},
		"no ConfigMap":                {`{name: app, envFrom: [{configMapRef: {name: settings}}]}`, reasonCreateConfigError},
		"not as root":                 {`{name: app, securityContext: {runAsNonRoot: true, runAsUser: 0}}`, reasonCreateConfigError},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				c.runtime.Missing["gone:1"] = true
				c.apply("spec: {containers: [" + test.pod + "]}")
				c.wantStatus("Pending [Initialized PodReadyToStartContainers]\napp: waiting " + test.want)
			})
		})
	}
}

func TestContainerStartsAtOnceWhenItsConfigMapAppears(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		pod := c.apply("spec: {containers: [{name: app, envFrom: [{configMapRef: {name: settings}}]}]}")
		sleep(time.Hour)
		c.objects.set("settings", map[string]string{"A": "1"})
		c.manager.ObjectsChanged(pod.UID)
		c.wantStatus("Running [ContainersReady Initialized PodReadyToStartContainers Ready]\napp: running, ready")
	})
}

func TestFailedMountIsReportedAndRepeated(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.volumes.failWith(errors.New(`MountVolume.SetUp failed for volume "v": secret "s" not found`))
		c.apply(plainPod)
		c.wantStatus("Pending [Initialized]\napp: waiting ContainerCreating")
		c.wantEvent(`Warning FailedMount MountVolume.SetUp failed for volume "v"`)
		c.volumes.failWith(nil)
		sleep(10 * time.Second)
		c.wantStatus("Running [ContainersReady Initialized PodReadyToStartContainers Ready]\napp: running, ready")
	})
}

func TestPodRunsOutOfTime(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply("spec: {activeDeadlineSeconds: 60, containers: [{name: app}]}")
		sleep(59 * time.Second)
		c.wantStatus("Running [ContainersReady Initialized PodReadyToStartContainers Ready]\napp: running, ready")
		sleep(2 * time.Second)
		c.wantStatus("Failed DeadlineExceeded [Initialized]\napp: terminated 143 Error")
	})
}

func TestPodThatDoesNotFitIsRejected(t *testing.T) {
	for name, test := range map[string]struct{ pod, want string }{
		"too much CPU":   {"spec: {containers: [{name: app, resources: {requests: {cpu: 3}}}]}", "Failed OutOfcpu []"},
		"unsafe sysctl":  {"spec: {securityContext: {sysctls: [{name: kernel.msgmax, value: \"1\"}]}, containers: [{name: app}]}", "Failed SysctlForbidden []"},
		"user namespace": {"spec: {hostUsers: false, containers: [{name: app}]}", "Failed PodFeatureUnsupported []"},
		"wrong selector": {"spec: {nodeSelector: {disk: ssd}, containers: [{name: app}]}", "Failed NodeAffinity []"},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				c.apply(test.pod)
				c.wantStatus(test.want)
				c.wantRuntime("")
			})
		})
	}
}

func TestSandboxThatDiesIsReplacedWithItsContainers(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(plainPod)
		if err := c.runtime.StopPodSandbox(t.Context(), "sandbox-2"); err != nil {
			t.Fatal(err)
		}
		sleep(time.Second)
		c.wantRuntime(`
sandbox default/web #0 notready
  container app #0 exited 137
sandbox default/web #1 ready
  container app #1 running`)
	})
}

func TestSandboxIsTriedAgain(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		left := 2
		c.runtime.Fail = func(call, _ string) error {
			if call == "RunPodSandbox" && left > 0 {
				left--
				return errors.New("network is not ready")
			}
			return nil
		}
		c.apply(plainPod)
		c.wantEvent("Warning FailedCreatePodSandBox Failed to create pod sandbox: network is not ready")
		sleep(10 * time.Second)
		c.wantStatus("Running [ContainersReady Initialized PodReadyToStartContainers Ready]\napp: running, ready")
	})
}

func TestEphemeralContainerIsStartedOnce(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(plainPod)
		c.change(func(pod *corev1.Pod) {
			pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{
				EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "busybox:1"}}}
		})
		c.runtime.ExitNamed("debug", 2)
		sleep(time.Hour)
		c.wantStatus(`
Running [ContainersReady Initialized PodReadyToStartContainers Ready]
app: running, ready
debug: terminated 2 Error`)
	})
}

func TestChangedImageReplacesTheContainer(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.apply(plainPod)
		c.change(func(pod *corev1.Pod) { pod.Spec.Containers[0].Image = "busybox:2" })
		c.wantEvent("Normal Killing Container app definition changed, will be restarted")
		c.wantStatus(`
Running [ContainersReady Initialized PodReadyToStartContainers Ready]
app: running, restarts 1, last terminated 143 Error, ready`)
	})
}

func TestReplacementFlipsNoConditionUnlessItTakesLong(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		c.runtime.Missing["slow:1"] = true
		c.runtime.Fail = func(call, _ string) error {
			if call == "PullImage" {
				time.Sleep(5 * time.Second)
			}
			return nil
		}
		c.apply(plainPod)
		c.change(func(pod *corev1.Pod) { pod.Spec.Containers[0].Image = "slow:1" })
		sleep(replaceGrace - 100*time.Millisecond)
		c.wantStatus("Running [ContainersReady Initialized PodReadyToStartContainers Ready]\napp: running, ready")
		sleep(200 * time.Millisecond)
		c.wantStatus("Running [Initialized PodReadyToStartContainers]\napp: terminated 143 Error")
		sleep(5 * time.Second)
		c.wantStatus("Running [ContainersReady Initialized PodReadyToStartContainers Ready]\napp: running, restarts 1, last terminated 143 Error, ready")
	})
}

func TestFailedPostStartHookKillsTheContainer(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		failures := 1
		c.runtime.ExecHandler = func(string, []string) (int, []byte, error) {
			failures--
			return max(0, failures+1), nil, nil
		}
		c.apply("spec: {containers: [{name: app, lifecycle: {postStart: {exec: {command: [hook]}}}}]}")
		c.wantEvent("Warning FailedPostStartHook PostStartHook failed")
		sleep(time.Minute)
		c.wantStatus(`
Running [ContainersReady Initialized PodReadyToStartContainers Ready]
app: running, restarts 1, last terminated 143 Error, ready`)
	})
}

func TestPreStopHookRunsBeforeTheSignal(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		hooked := false
		c.runtime.ExecHandler = func(string, []string) (int, []byte, error) {
			hooked = true
			time.Sleep(5 * time.Second)
			return 0, nil, nil
		}
		c.apply("spec: {containers: [{name: app, lifecycle: {preStop: {exec: {command: [hook]}}}}]}")
		c.delete(30)
		sleep(4 * time.Second)
		c.wantRuntime("sandbox default/web #0 ready\n  container app #0 running")
		sleep(2 * time.Second)
		if !hooked || c.get() != nil {
			t.Errorf("hook ran: %v; pod: %v", hooked, c.get())
		}
	})
}

func TestNewRequiresItsDependencies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if _, err := New(Config{NodeName: "n1"}); err == nil || err.Error() != "pods: Config.Client is missing" {
			t.Errorf("got %v", err)
		}
	})
}
