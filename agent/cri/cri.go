// Package cri speaks to the container runtime over the Container Runtime
// Interface (k8s.io/cri-api, runtime.v1): containerd, or any runtime with a
// CRI socket.
//
//	agent/pods, agent/server ──► Runtime, Images ──gRPC──► containerd
//	                                   ▲
//	                                 Fake (tests)
//
// The client holds no state of its own. A runtime that restarts is waited
// for: calls block until the socket answers again or their time is over.
package cri

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime is what Weft needs of a runtime to run pods. All methods may be
// called concurrently. Stop and Remove succeed for things already gone.
type Runtime interface {
	// RunPodSandbox creates and starts a sandbox, and returns its ID.
	RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error)
	// StopPodSandbox kills what runs in the sandbox and takes its network down.
	StopPodSandbox(ctx context.Context, id string) error
	// RemovePodSandbox removes the sandbox with all of its containers.
	RemovePodSandbox(ctx context.Context, id string) error
	// Sandboxes lists sandboxes in every state whose labels include selector.
	Sandboxes(ctx context.Context, selector map[string]string) ([]*runtimeapi.PodSandbox, error)
	// SandboxStatus reports one sandbox, its addresses included.
	SandboxStatus(ctx context.Context, id string) (*runtimeapi.PodSandboxStatus, error)

	// CreateContainer creates a container in a sandbox and returns its ID.
	CreateContainer(ctx context.Context, sandboxID string, config *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig) (string, error)
	// StartContainer starts a created container.
	StartContainer(ctx context.Context, id string) error
	// StopContainer sends the stop signal, and SIGKILL after grace.
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	// RemoveContainer removes a container; a running one is killed first.
	RemoveContainer(ctx context.Context, id string) error
	// Containers lists containers in every state whose labels include selector.
	Containers(ctx context.Context, selector map[string]string) ([]*runtimeapi.Container, error)
	// ContainerStatus reports one container.
	ContainerStatus(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error)
	// UpdateResources changes the limits of a running container; zero fields
	// stay as they are, negative ones are no limit.
	UpdateResources(ctx context.Context, id string, resources *runtimeapi.LinuxContainerResources) error
	// MemoryUsage is what a running container uses, in bytes.
	MemoryUsage(ctx context.Context, id string) (uint64, error)

	// ExecSync runs a command in a container to its end and returns its exit
	// code with both outputs joined. After timeout (0 = none) the error's
	// code is DeadlineExceeded.
	ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (exitCode int, output []byte, err error)

	// Watch calls handle for every change until ctx is done, one at a time.
	// The first event, and the first after each interruption, has Resync set:
	// anything may have changed before it.
	Watch(ctx context.Context, handle func(Event)) error
}

// Images is the runtime's image store.
type Images interface {
	// ImageStatus returns the image that a reference names, nil if absent.
	ImageStatus(ctx context.Context, image string) (*runtimeapi.Image, error)
	// PullImage fetches an image and returns its ID. Auth may be nil.
	PullImage(ctx context.Context, image string, auth *runtimeapi.AuthConfig, sandbox *runtimeapi.PodSandboxConfig) (string, error)
	// ListImages lists all images.
	ListImages(ctx context.Context) ([]*runtimeapi.Image, error)
	// RemoveImage removes an image; absent is success.
	RemoveImage(ctx context.Context, image string) error
	// ImageFilesystems reports the use of the filesystems that hold images.
	ImageFilesystems(ctx context.Context) ([]*runtimeapi.FilesystemUsage, error)
}

// Event says that a container or sandbox of a pod has changed.
type Event struct {
	// Resync is set when events may have been missed; nothing else is then.
	Resync bool
	// PodUID may be empty when the runtime no longer knows the sandbox.
	PodUID      types.UID
	ContainerID string
	Type        runtimeapi.ContainerEventType
}

// IsNotFound reports whether err says that the object does not exist.
func IsNotFound(err error) bool {
	return status.Code(err) == codes.NotFound
}

// IsTimeout reports whether err says that a command ran out of its time.
func IsTimeout(err error) bool {
	return status.Code(err) == codes.DeadlineExceeded
}

// Message is the text of err for people: the runtime's own words, without
// the gRPC wrapping.
func Message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}
