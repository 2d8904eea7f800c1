package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// callTimeout bounds ordinary calls, waiting for the runtime included.
	callTimeout = 2 * time.Minute
	// sandboxTimeout bounds RunPodSandbox, which may wait for the network.
	sandboxTimeout = 4 * time.Minute
	// maxMessage is the largest gRPC message, in bytes, as in kubelet.
	maxMessage = 16 << 20
	// resubscribeDelay is the pause before a broken event stream is reopened.
	resubscribeDelay = 100 * time.Millisecond
	// subscribed is how long it takes a runtime, at most, to subscribe us.
	subscribed = time.Second
	// initDelay is the pause between calls while the runtime initializes.
	initDelay = 20 * time.Millisecond
)

// Client is a connection to a runtime. It implements Runtime and Images.
type Client struct {
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	log     *slog.Logger
}

var (
	_ Runtime = (*Client)(nil)
	_ Images  = (*Client)(nil)
)

// Dial prepares a connection to the Unix socket at path; it does not wait for
// the runtime. The connection re-establishes itself. Callers Close it.
func Dial(path string, log *slog.Logger) (*Client, error) {
	if log == nil {
		log = slog.Default()
	}
	retry := backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(path, "unix://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: 5 * time.Second}),
		grpc.WithUnaryInterceptor(waitForInit),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true),
			grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("dial runtime at %s: %w", path, err)
	}
	return &Client{
		conn:    conn,
		runtime: runtimeapi.NewRuntimeServiceClient(conn),
		images:  runtimeapi.NewImageServiceClient(conn),
		log:     log,
	}, nil
}

// waitForInit repeats calls that containerd refuses because its CRI plugin is
// still starting; such calls have done nothing.
func waitForInit(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	for {
		err := invoke(ctx, method, req, reply, conn, opts...)
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "not initialized yet") {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(initDelay):
		}
	}
}

// Close ends the connection. Containers are not affected.
func (c *Client) Close() error { return c.conn.Close() }

// Conn is the underlying connection, for services beside the CRI
// (see ImportImages).
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// RuntimeService is the plain CRI client, for calls that Runtime does not
// wrap (stats, streaming addresses, logs).
func (c *Client) RuntimeService() runtimeapi.RuntimeServiceClient { return c.runtime }

// ImageService is the plain CRI image client.
func (c *Client) ImageService() runtimeapi.ImageServiceClient { return c.images }

// Version reports the runtime's name and version.
func (c *Client) Version(ctx context.Context) (*runtimeapi.VersionResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
}

// WaitReady returns when the runtime and its network report ready, or ctx is done.
func (c *Client) WaitReady(ctx context.Context) error {
	var last string
	for {
		resp, err := c.runtime.Status(ctx, &runtimeapi.StatusRequest{})
		if err == nil {
			if last = notReady(resp.GetStatus()); last == "" {
				return nil
			}
		} else {
			last = Message(err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("runtime is not ready: %s: %w", last, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func notReady(s *runtimeapi.RuntimeStatus) string {
	for _, condition := range s.GetConditions() {
		if !condition.Status {
			return fmt.Sprintf("%s: %s", condition.Type, condition.Message)
		}
	}
	return ""
}

// RunPodSandbox implements Runtime.
func (c *Client) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, sandboxTimeout)
	defer cancel()
	resp, err := c.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	return resp.GetPodSandboxId(), err
}

// StopPodSandbox implements Runtime.
func (c *Client) StopPodSandbox(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return ignoreNotFound(err)
}

// RemovePodSandbox implements Runtime.
func (c *Client) RemovePodSandbox(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return ignoreNotFound(err)
}

// Sandboxes implements Runtime.
func (c *Client) Sandboxes(ctx context.Context, selector map[string]string) ([]*runtimeapi.PodSandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: selector}})
	return resp.GetItems(), err
}

// SandboxStatus implements Runtime.
func (c *Client) SandboxStatus(ctx context.Context, id string) (*runtimeapi.PodSandboxStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	return resp.GetStatus(), err
}

// CreateContainer implements Runtime.
func (c *Client) CreateContainer(ctx context.Context, sandboxID string, config *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: sandboxID, Config: config, SandboxConfig: sandbox})
	return resp.GetContainerId(), err
}

// StartContainer implements Runtime.
func (c *Client) StartContainer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

// StopContainer implements Runtime. Grace is rounded up to whole seconds.
func (c *Client) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout+grace)
	defer cancel()
	seconds := int64((grace + time.Second - 1) / time.Second)
	_, err := c.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: seconds})
	return ignoreNotFound(err)
}

// RemoveContainer implements Runtime.
func (c *Client) RemoveContainer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	return ignoreNotFound(err)
}

// Containers implements Runtime.
func (c *Client) Containers(ctx context.Context, selector map[string]string) ([]*runtimeapi.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{LabelSelector: selector}})
	return resp.GetContainers(), err
}

// ContainerStatus implements Runtime.
func (c *Client) ContainerStatus(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	return resp.GetStatus(), err
}

// UpdateResources implements Runtime.
func (c *Client) UpdateResources(ctx context.Context, id string, resources *runtimeapi.LinuxContainerResources) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: resources})
	return err
}

// MemoryUsage implements Runtime.
func (c *Client) MemoryUsage(ctx context.Context, id string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
	return resp.GetStats().GetMemory().GetUsageBytes().GetValue(), err
}

// ExecSync implements Runtime.
func (c *Client) ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (int, []byte, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout+callTimeout)
		defer cancel()
	}
	seconds := int64((timeout + time.Second - 1) / time.Second)
	resp, err := c.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: seconds})
	if err != nil {
		return 0, nil, err
	}
	return int(resp.ExitCode), append(resp.Stdout, resp.Stderr...), nil
}

// Watch implements Runtime.
func (c *Client) Watch(ctx context.Context, handle func(Event)) error {
	for {
		err := c.watchOnce(ctx, handle)
		if ctx.Err() != nil {
			return nil
		}
		c.log.Info("event stream of the runtime ended, subscribing again", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(resubscribeDelay):
		}
	}
}

// watchOnce reads one event stream to its end.
func (c *Client) watchOnce(ctx context.Context, handle func(Event)) error {
	stream, err := c.runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return err
	}
	// The runtime does not say when the subscription stands. So everything is
	// looked at now, and once more when it surely does.
	var mu sync.Mutex
	deliver := func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		handle(e)
	}
	deliver(Event{Resync: true})
	surely := time.AfterFunc(subscribed, func() { deliver(Event{Resync: true}) })
	defer surely.Stop()
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		deliver(Event{
			PodUID:      types.UID(resp.GetPodSandboxStatus().GetMetadata().GetUid()),
			ContainerID: resp.ContainerId,
			Type:        resp.ContainerEventType,
		})
	}
}

// ImageStatus implements Images.
func (c *Client) ImageStatus(ctx context.Context, image string) (*runtimeapi.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	return resp.GetImage(), err
}

// PullImage implements Images. It takes as long as the runtime sees progress.
func (c *Client) PullImage(ctx context.Context, image string, auth *runtimeapi.AuthConfig, sandbox *runtimeapi.PodSandboxConfig) (string, error) {
	resp, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: image}, Auth: auth, SandboxConfig: sandbox})
	if err != nil {
		return "", err
	}
	if resp.ImageRef == "" {
		return "", errors.New("runtime returned no reference for the pulled image")
	}
	return resp.ImageRef, nil
}

// ListImages implements Images.
func (c *Client) ListImages(ctx context.Context) ([]*runtimeapi.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	return resp.GetImages(), err
}

// RemoveImage implements Images.
func (c *Client) RemoveImage(ctx context.Context, image string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	return ignoreNotFound(err)
}

// ImageFilesystems implements Images.
func (c *Client) ImageFilesystems(ctx context.Context) ([]*runtimeapi.FilesystemUsage, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	return resp.GetImageFilesystems(), err
}

func ignoreNotFound(err error) error {
	if IsNotFound(err) {
		return nil
	}
	return err
}
