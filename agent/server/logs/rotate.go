package logs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime is what rotation needs, a part of runtimeapi.RuntimeServiceClient.
type Runtime interface {
	ListContainers(ctx context.Context, in *runtimeapi.ListContainersRequest, opts ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error)
	ContainerStatus(ctx context.Context, in *runtimeapi.ContainerStatusRequest, opts ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error)
	ReopenContainerLog(ctx context.Context, in *runtimeapi.ReopenContainerLogRequest, opts ...grpc.CallOption) (*runtimeapi.ReopenContainerLogResponse, error)
}

// Rotator keeps the logs of running containers small. Zero fields have the
// defaults of kubelet.
type Rotator struct {
	Runtime Runtime
	// MaxSize is the size in bytes from which a file is rotated, default 10 MiB.
	MaxSize int64
	// MaxFiles is how many files a log may have, the live one included, default 5.
	MaxFiles int
	// Interval is the time between two looks, default 10 s.
	Interval time.Duration
	Log      *slog.Logger // nil = slog.Default()
}

// Run rotates until ctx is done.
func (r *Rotator) Run(ctx context.Context) error {
	if r.MaxSize == 0 {
		r.MaxSize = 10 << 20
	}
	if r.MaxFiles == 0 {
		r.MaxFiles = 5
	}
	if r.Interval == 0 {
		r.Interval = 10 * time.Second
	}
	if r.Log == nil {
		r.Log = slog.Default()
	}
	if r.MaxFiles < 2 {
		return fmt.Errorf("log rotation needs at least 2 files per log, not %d", r.MaxFiles)
	}
	ticker := time.NewTicker(r.Interval)
	defer ticker.Stop()
	paths := map[string]string{} // log path by container; never changes
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := r.pass(ctx, paths); err != nil && ctx.Err() == nil {
				r.Log.Warn("container logs not rotated", "error", err)
			}
		}
	}
}

// pass looks at every running container once.
func (r *Rotator) pass(ctx context.Context, paths map[string]string) error {
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	list, err := r.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{State: running}})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	alive := map[string]bool{}
	var errs []error
	for _, c := range list.Containers {
		alive[c.Id] = true
		if _, known := paths[c.Id]; !known {
			status, err := r.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
			if err != nil {
				continue // ended meanwhile
			}
			paths[c.Id] = status.Status.GetLogPath()
		}
		errs = append(errs, r.rotate(ctx, c.Id, paths[c.Id]))
	}
	for id := range paths {
		if !alive[id] {
			delete(paths, id)
		}
	}
	return errors.Join(errs...)
}

// rotate renames the live file if it is large and has the runtime open a new
// one. If the runtime does not, the file gets its name back: the container
// writes on, and the next pass tries again. Without a live file, an agent was
// killed between the two steps.
func (r *Rotator) rotate(ctx context.Context, id, path string) error {
	if path == "" {
		return nil
	}
	info, ok := exists(path)
	if !ok {
		return r.finish(ctx, id, path)
	}
	if info.Size() < r.MaxSize {
		return nil
	}
	part := path + "." + time.Now().UTC().Format("20060102-150405.000000000")
	if err := os.Rename(path, part); err != nil {
		return fmt.Errorf("rotate log of container %s: %w", id, err)
	}
	if _, err := r.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		return errors.Join(fmt.Errorf("reopen log of container %s: %w", id, err), os.Rename(part, path))
	}
	return r.prune(path)
}

// finish has the runtime open a new file if there are earlier parts. A log
// without any is the runtime's business.
func (r *Rotator) finish(ctx context.Context, id, path string) error {
	if parts, err := rotated(path); err != nil || len(parts) == 0 {
		return nil // an error means that the pod is being removed
	}
	if _, err := r.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", id, err)
	}
	return r.prune(path)
}

// prune removes the oldest parts.
func (r *Rotator) prune(path string) error {
	parts, err := rotated(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, part := range parts[:max(0, len(parts)-(r.MaxFiles-1))] {
		errs = append(errs, os.Remove(part))
	}
	return errors.Join(errs...)
}
