package reclaim

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Stats is a part of runtimeapi.RuntimeServiceClient.
type Stats interface {
	ListPodSandboxStats(ctx context.Context, in *runtimeapi.ListPodSandboxStatsRequest, opts ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error)
}

// Measure returns a function for Config.Usage. Memory is the working set of
// the pod's cgroup; disk is what its containers wrote, and the directories
// that dirs names: logs, emptyDir volumes.
func Measure(stats Stats, dirs func(podUID types.UID, namespace, name string) []string) func(context.Context, bool) (map[types.UID]Usage, error) {
	return func(ctx context.Context, disk bool) (map[types.UID]Usage, error) {
		list, err := stats.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
		if err != nil {
			return nil, fmt.Errorf("list sandbox statistics: %w", err)
		}
		usage := map[types.UID]Usage{}
		for _, pod := range list.Stats {
			meta := pod.GetAttributes().GetMetadata()
			u := usage[types.UID(meta.GetUid())]
			u.Memory += int64(pod.GetLinux().GetMemory().GetWorkingSetBytes().GetValue())
			for _, c := range pod.GetLinux().GetContainers() {
				u.Disk += int64(c.GetWritableLayer().GetUsedBytes().GetValue())
			}
			if disk {
				for _, dir := range dirs(types.UID(meta.GetUid()), meta.GetNamespace(), meta.GetName()) {
					u.Disk += sizeOf(dir)
				}
			}
			usage[types.UID(meta.GetUid())] = u
		}
		return usage, nil
	}
}

// sizeOf is how many bytes a directory takes on its own file system; what
// cannot be read, or vanishes meanwhile, counts as nothing.
func sizeOf(root string) (bytes int64) {
	var device uint64
	filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if path == root {
			device = stat.Dev
		}
		if stat.Dev != device { // memory, or another volume
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		bytes += stat.Blocks * 512 // stat(2)
		return nil
	})
	return bytes
}

// DiskOf returns a function for Config.Disk: the file system of a path.
func DiskOf(path string) func() (used, capacity int64, err error) {
	return func() (int64, int64, error) {
		var s unix.Statfs_t
		if err := unix.Statfs(path, &s); err != nil {
			return 0, 0, fmt.Errorf("statfs %s: %w", path, err)
		}
		return int64(s.Blocks-s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize, nil
	}
}
