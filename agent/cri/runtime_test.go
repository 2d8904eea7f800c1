package cri_test

import (
	"context"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/cri"
	"weft.dev/weft/agent/cri/critest"
)

// TestRealRuntime runs a container of an imported image in containerd.
func TestRealRuntime(t *testing.T) {
	r := critest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	events := make(chan cri.Event, 100)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go func() { _ = r.Watch(watching, func(e cri.Event) { events <- e }) }()

	host := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "default", Uid: "u1"},
		Labels:       map[string]string{"app": "p"},
		LogDirectory: r.Dir,
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: r.CgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: host}},
	}
	id, err := r.RunPodSandbox(ctx, sandbox, "")
	if err != nil {
		t.Fatal(err)
	}
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, LogPath: "c.log",
		Image: &runtimeapi.ImageSpec{Image: critest.Busybox}, Command: []string{"sh", "-c", "echo hello; sleep 100"},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: host}},
	}
	container, err := r.CreateContainer(ctx, id, config, sandbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.StartContainer(ctx, container); err != nil {
		t.Fatal(err)
	}
	code, output, err := r.ExecSync(ctx, container, []string{"sh", "-c", "echo $((6*7)); exit 3"}, 10*time.Second)
	if code != 3 || strings.TrimSpace(string(output)) != "42" || err != nil {
		t.Errorf("exec gives %d, %q, %v", code, output, err)
	}
	if _, _, err := r.ExecSync(ctx, container, []string{"sleep", "9"}, time.Second); !cri.IsTimeout(err) {
		t.Errorf("exec beyond its time gives %v", err)
	}
	wantEvents(t, events, container)

	r.KillDaemon()
	r.StartDaemon()
	status, err := r.ContainerStatus(ctx, container)
	if err != nil || status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after the runtime was killed and started: %v, %v", status.GetState(), err)
	}
	if e := <-events; !e.Resync {
		t.Errorf("first event of the new stream is %+v", e)
	}
	if err := r.StopContainer(ctx, container, time.Second); err != nil {
		t.Error(err)
	}
	if err := r.RemovePodSandbox(ctx, id); err != nil {
		t.Error(err)
	}
	if err := r.StopPodSandbox(ctx, id); err != nil {
		t.Errorf("stop of a sandbox that is gone: %v", err)
	}
}

func wantEvents(t *testing.T, events chan cri.Event, container string) {
	t.Helper()
	resync, created, started := false, false, false
	for !resync || !created || !started {
		select {
		case e := <-events:
			resync = resync || e.Resync
			created = created || e.ContainerID == container && e.PodUID == "u1" && e.Type == runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
			started = started || e.ContainerID == container && e.Type == runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
		case <-time.After(10 * time.Second):
			t.Fatalf("resync %v, created %v, started %v", resync, created, started)
		}
	}
}

func TestImportIsRepeatable(t *testing.T) {
	r := critest.Start(t)
	for range 2 {
		names := r.Import(critest.BusyboxArchive(t, "tools:1"))
		if len(names) != 1 || names[0] != "docker.io/library/tools:1" {
			t.Errorf("imported %v", names)
		}
	}
	image, err := r.ImageStatus(t.Context(), "tools:1")
	if err != nil || image == nil {
		t.Errorf("image is not there: %v", err)
	}
	if _, err := cri.ImportImages(t.Context(), r.Conn(), strings.NewReader("not an archive")); err == nil {
		t.Error("nonsense is accepted")
	}
}
