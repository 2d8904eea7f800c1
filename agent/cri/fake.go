package cri

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Fake is an in-memory runtime with state. Its containers run until they are
// stopped, or as their Script says. The zero value is ready to use.
type Fake struct {
	// Script says how each container behaves, when it is started; nil, or a
	// zero Behaviour, means it runs until stopped.
	Script func(*runtimeapi.ContainerConfig) Behaviour
	// Fail may return an error for a call ("RunPodSandbox", "PullImage", …)
	// about the name of a pod, container or image, or the ID of what exists;
	// nil means success.
	Fail func(call, name string) error
	// ExecHandler answers ExecSync; nil exits 0 with no output.
	ExecHandler func(container string, command []string) (int, []byte, error)
	// Usage is the memory, in bytes, that each container uses, by its name.
	Usage map[string]uint64
	// Missing images are pulled before they are there; all others are present.
	Missing map[string]bool

	mu         sync.Mutex
	next       int
	sandboxes  map[string]*fakeSandbox
	containers map[string]*fakeContainer
	watchers   map[int]func(Event)
}

// Behaviour is what one container does.
type Behaviour struct {
	// Exits is set when the container ends by itself, After its start.
	Exits    bool
	After    time.Duration
	ExitCode int32
	// Stubborn ignores the stop signal and uses up its whole grace.
	Stubborn bool
	// StartError makes StartContainer fail; the container exits 128.
	StartError error
}

type fakeSandbox struct {
	status  *runtimeapi.PodSandboxStatus
	config  *runtimeapi.PodSandboxConfig
	ordinal int
}

type fakeContainer struct {
	sandbox   string
	status    *runtimeapi.ContainerStatus
	config    *runtimeapi.ContainerConfig
	behaviour Behaviour
	done      chan struct{}
	ordinal   int
}

var (
	_ Runtime = (*Fake)(nil)
	_ Images  = (*Fake)(nil)
)

func (f *Fake) fail(call, name string) error {
	if f.Fail == nil {
		return nil
	}
	return f.Fail(call, name)
}

func (f *Fake) newID(prefix string) string {
	f.next++
	if f.sandboxes == nil {
		f.sandboxes = map[string]*fakeSandbox{}
		f.containers = map[string]*fakeContainer{}
	}
	return fmt.Sprintf("%s-%d", prefix, f.next)
}

// RunPodSandbox implements Runtime.
func (f *Fake) RunPodSandbox(_ context.Context, config *runtimeapi.PodSandboxConfig, _ string) (string, error) {
	if err := f.fail("RunPodSandbox", config.Metadata.Name); err != nil {
		return "", err
	}
	f.mu.Lock()
	id := f.newID("sandbox")
	f.sandboxes[id] = &fakeSandbox{config: config, ordinal: f.next, status: &runtimeapi.PodSandboxStatus{
		Id: id, Metadata: config.Metadata, State: runtimeapi.PodSandboxState_SANDBOX_READY,
		CreatedAt: time.Now().UnixNano(), Labels: config.Labels, Annotations: config.Annotations,
		Linux:   &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: config.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: fmt.Sprintf("10.0.0.%d", f.next)},
	}}
	f.mu.Unlock()
	f.emit(id, id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return id, nil
}

// StopPodSandbox implements Runtime.
func (f *Fake) StopPodSandbox(_ context.Context, id string) error {
	if err := f.fail("StopPodSandbox", id); err != nil {
		return err
	}
	f.mu.Lock()
	sandbox := f.sandboxes[id]
	if sandbox == nil {
		f.mu.Unlock()
		return nil
	}
	sandbox.status.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	for _, container := range f.containers {
		if container.sandbox == id {
			f.exit(container, 137)
		}
	}
	f.mu.Unlock()
	f.emit(id, id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// RemovePodSandbox implements Runtime.
func (f *Fake) RemovePodSandbox(ctx context.Context, id string) error {
	if err := f.fail("RemovePodSandbox", id); err != nil {
		return err
	}
	if err := f.StopPodSandbox(ctx, id); err != nil {
		return err
	}
	f.mu.Lock()
	delete(f.sandboxes, id)
	maps.DeleteFunc(f.containers, func(_ string, c *fakeContainer) bool { return c.sandbox == id })
	f.mu.Unlock()
	f.emit(id, id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}

// Sandboxes implements Runtime.
func (f *Fake) Sandboxes(_ context.Context, selector map[string]string) ([]*runtimeapi.PodSandbox, error) {
	if err := f.fail("Sandboxes", ""); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*runtimeapi.PodSandbox
	for id, s := range f.sandboxes {
		if matches(s.status.Labels, selector) {
			out = append(out, &runtimeapi.PodSandbox{Id: id, Metadata: s.status.Metadata, State: s.status.State,
				CreatedAt: s.status.CreatedAt, Labels: s.status.Labels, Annotations: s.status.Annotations})
		}
	}
	return out, nil
}

// SandboxStatus implements Runtime.
func (f *Fake) SandboxStatus(_ context.Context, id string) (*runtimeapi.PodSandboxStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sandbox := f.sandboxes[id]
	if sandbox == nil {
		return nil, status.Errorf(codes.NotFound, "sandbox %s", id)
	}
	return &runtimeapi.PodSandboxStatus{Id: id, Metadata: sandbox.status.Metadata, State: sandbox.status.State,
		CreatedAt: sandbox.status.CreatedAt, Labels: sandbox.status.Labels, Annotations: sandbox.status.Annotations,
		Network: sandbox.status.Network, Linux: sandbox.status.Linux}, nil
}

// CreateContainer implements Runtime.
func (f *Fake) CreateContainer(_ context.Context, sandboxID string, config *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	if err := f.fail("CreateContainer", config.Metadata.Name); err != nil {
		return "", err
	}
	f.mu.Lock()
	if f.sandboxes[sandboxID] == nil {
		f.mu.Unlock()
		return "", status.Errorf(codes.NotFound, "sandbox %s", sandboxID)
	}
	id := f.newID("container")
	container := &fakeContainer{sandbox: sandboxID, config: config, ordinal: f.next, done: make(chan struct{}),
		status: &runtimeapi.ContainerStatus{
			Id: id, Metadata: config.Metadata, State: runtimeapi.ContainerState_CONTAINER_CREATED,
			CreatedAt: time.Now().UnixNano(), Image: config.Image, ImageRef: config.Image.Image,
			Labels: config.Labels, Annotations: config.Annotations, Mounts: config.Mounts, LogPath: config.LogPath,
			Resources: &runtimeapi.ContainerResources{Linux: proto.CloneOf(config.GetLinux().GetResources())},
		}}
	if f.Script != nil {
		container.behaviour = f.Script(config)
	}
	f.containers[id] = container
	f.mu.Unlock()
	f.emit(id, sandboxID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return id, nil
}

// StartContainer implements Runtime.
func (f *Fake) StartContainer(_ context.Context, id string) error {
	if err := f.fail("StartContainer", id); err != nil {
		return err
	}
	f.mu.Lock()
	container := f.containers[id]
	if container == nil {
		f.mu.Unlock()
		return status.Errorf(codes.NotFound, "container %s", id)
	}
	b := container.behaviour
	if b.StartError != nil {
		f.exit(container, 128)
		container.status.Reason, container.status.Message = "StartError", b.StartError.Error()
		f.mu.Unlock()
		return b.StartError
	}
	container.status.State = runtimeapi.ContainerState_CONTAINER_RUNNING
	container.status.StartedAt = time.Now().UnixNano()
	if b.Exits {
		time.AfterFunc(b.After, func() { f.Exit(id, b.ExitCode) })
	}
	f.mu.Unlock()
	f.emit(id, container.sandbox, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return nil
}

// StopContainer implements Runtime.
func (f *Fake) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	if err := f.fail("StopContainer", id); err != nil {
		return err
	}
	f.mu.Lock()
	container := f.containers[id]
	f.mu.Unlock()
	if container == nil {
		return nil
	}
	if !container.behaviour.Stubborn {
		f.Exit(id, 143)
		return nil
	}
	select {
	case <-container.done:
	case <-time.After(grace):
		f.Exit(id, 137)
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// RemoveContainer implements Runtime.
func (f *Fake) RemoveContainer(_ context.Context, id string) error {
	f.mu.Lock()
	container := f.containers[id]
	delete(f.containers, id)
	if container != nil {
		f.exit(container, 137) // for whoever waits for its end
	}
	f.mu.Unlock()
	if container != nil {
		f.emit(id, container.sandbox, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
	return nil
}

// Containers implements Runtime.
func (f *Fake) Containers(_ context.Context, selector map[string]string) ([]*runtimeapi.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*runtimeapi.Container
	for id, c := range f.containers {
		if matches(c.status.Labels, selector) {
			out = append(out, &runtimeapi.Container{Id: id, PodSandboxId: c.sandbox, Metadata: c.status.Metadata,
				Image: c.status.Image, ImageRef: c.status.ImageRef, State: c.status.State,
				CreatedAt: c.status.CreatedAt, Labels: c.status.Labels, Annotations: c.status.Annotations})
		}
	}
	return out, nil
}

// ContainerStatus implements Runtime.
func (f *Fake) ContainerStatus(_ context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[id]
	if c == nil {
		return nil, status.Errorf(codes.NotFound, "container %s", id)
	}
	s := c.status
	return &runtimeapi.ContainerStatus{Id: s.Id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt,
		StartedAt: s.StartedAt, FinishedAt: s.FinishedAt, ExitCode: s.ExitCode, Image: s.Image, ImageRef: s.ImageRef,
		Reason: s.Reason, Message: s.Message, Labels: s.Labels, Annotations: s.Annotations, Mounts: s.Mounts, LogPath: s.LogPath,
		Resources: proto.CloneOf(s.Resources)}, nil
}

// ExecSync implements Runtime.
func (f *Fake) ExecSync(_ context.Context, id string, command []string, _ time.Duration) (int, []byte, error) {
	f.mu.Lock()
	container := f.containers[id]
	f.mu.Unlock()
	if container == nil || container.status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return 0, nil, status.Errorf(codes.NotFound, "container %s is not running", id)
	}
	if f.ExecHandler == nil {
		return 0, nil, nil
	}
	return f.ExecHandler(container.config.Metadata.Name, command)
}

// Watch implements Runtime.
func (f *Fake) Watch(ctx context.Context, handle func(Event)) error {
	f.mu.Lock()
	f.next++
	if f.watchers == nil {
		f.watchers = map[int]func(Event){}
	}
	key := f.next
	f.watchers[key] = handle
	f.mu.Unlock()
	handle(Event{Resync: true})
	<-ctx.Done()
	f.mu.Lock()
	delete(f.watchers, key)
	f.mu.Unlock()
	return nil
}

// Exit ends a running container with a code, as if it had exited by itself.
func (f *Fake) Exit(id string, code int32) {
	f.mu.Lock()
	container := f.containers[id]
	ended := container != nil && f.exit(container, code)
	f.mu.Unlock()
	if ended {
		f.emit(id, container.sandbox, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}

// ExitNamed ends the newest running container of that name.
func (f *Fake) ExitNamed(name string, code int32) {
	f.mu.Lock()
	var newest *fakeContainer
	for _, c := range f.containers {
		if c.config.Metadata.Name == name && (newest == nil || c.ordinal > newest.ordinal) {
			newest = c
		}
	}
	f.mu.Unlock()
	if newest != nil {
		f.Exit(newest.status.Id, code)
	}
}

// exit marks a container as ended; f.mu is held.
func (f *Fake) exit(c *fakeContainer, code int32) bool {
	if c.status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		return false
	}
	c.status.State = runtimeapi.ContainerState_CONTAINER_EXITED
	c.status.ExitCode = code
	c.status.FinishedAt = time.Now().UnixNano()
	c.status.Reason = "Error"
	if code == 0 {
		c.status.Reason = "Completed"
	}
	close(c.done)
	return true
}

func (f *Fake) emit(id, sandboxID string, kind runtimeapi.ContainerEventType) {
	f.mu.Lock()
	var uid types.UID
	if s := f.sandboxes[sandboxID]; s != nil {
		uid = types.UID(s.status.Metadata.Uid)
	}
	handlers := slices.Collect(maps.Values(f.watchers))
	f.mu.Unlock()
	for _, handle := range handlers {
		handle(Event{PodUID: uid, ContainerID: id, Type: kind})
	}
}

// String prints sandboxes and their containers in order of creation, one per
// line, for comparison in tests.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out strings.Builder
	for _, s := range slices.SortedFunc(maps.Values(f.sandboxes), func(a, b *fakeSandbox) int { return a.ordinal - b.ordinal }) {
		state := strings.ToLower(strings.TrimPrefix(s.status.State.String(), "SANDBOX_"))
		fmt.Fprintf(&out, "sandbox %s/%s #%d %s\n", s.config.Metadata.Namespace, s.config.Metadata.Name, s.config.Metadata.Attempt, state)
		for _, c := range slices.SortedFunc(maps.Values(f.containers), func(a, b *fakeContainer) int { return a.ordinal - b.ordinal }) {
			if c.sandbox == s.status.Id {
				fmt.Fprintf(&out, "  %s\n", c)
			}
		}
	}
	return out.String()
}

func (c *fakeContainer) String() string {
	state := strings.ToLower(strings.TrimPrefix(c.status.State.String(), "CONTAINER_"))
	if c.status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		state = fmt.Sprintf("%s %d", state, c.status.ExitCode)
	}
	return fmt.Sprintf("container %s #%d %s", c.config.Metadata.Name, c.config.Metadata.Attempt, state)
}

func matches(labels, selector map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}
