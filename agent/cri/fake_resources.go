package cri

import (
	"cmp"
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateResources implements Runtime.
func (f *Fake) UpdateResources(_ context.Context, id string, resources *runtimeapi.LinuxContainerResources) error {
	if err := f.fail("UpdateResources", id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[id]
	if c == nil {
		return status.Errorf(codes.NotFound, "container %s", id)
	}
	linux := c.status.Resources.Linux
	linux.CpuShares = cmp.Or(resources.CpuShares, linux.CpuShares)
	linux.CpuQuota = cmp.Or(resources.CpuQuota, linux.CpuQuota)
	linux.MemoryLimitInBytes = cmp.Or(resources.MemoryLimitInBytes, linux.MemoryLimitInBytes)
	return nil
}

// MemoryUsage implements Runtime.
func (f *Fake) MemoryUsage(_ context.Context, id string) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[id]
	if c == nil {
		return 0, status.Errorf(codes.NotFound, "container %s", id)
	}
	return f.Usage[c.config.Metadata.Name], nil
}

// SetUsage changes Usage of a container while the runtime is in use.
func (f *Fake) SetUsage(container string, bytes uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Usage == nil {
		f.Usage = map[string]uint64{}
	}
	f.Usage[container] = bytes
}
