package pods

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroupRoots are where a pod's directory can be found, whatever the mode of
// the host: pure v2, hybrid, v1 (any of its hierarchies holds every pod).
var cgroupRoots = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory"}

// Cgroups makes and removes the cgroups of pods.
type Cgroups interface {
	// Ensure makes the cgroup with these limits, or sets them anew; a quota
	// or memory limit of 0 is none.
	Ensure(path string, limits *runtimeapi.LinuxContainerResources, pids int64) error
	// Remove removes the cgroup, whose processes are gone; absent is success.
	Remove(path string) error
	// Pods lists the pods that have a cgroup below parent, with its path.
	Pods(parent string) (map[types.UID]string, error)
}

// HostCgroups returns Cgroups on the host's cgroup file systems. cgroup v1,
// hybrid and v2 are told apart by the library.
func HostCgroups() Cgroups { return hostCgroups{} }

type hostCgroups struct{}

// Ensure implements Cgroups.
func (hostCgroups) Ensure(path string, limits *runtimeapi.LinuxContainerResources, pids int64) error {
	resources := &cgroups.Resources{
		SkipDevices: true,
		CpuShares:   uint64(limits.CpuShares),
		CpuPeriod:   uint64(limits.CpuPeriod),
		CpuQuota:    cmp.Or(limits.CpuQuota, -1),
		Memory:      cmp.Or(limits.MemoryLimitInBytes, -1),
	}
	if cgroups.IsCgroup2UnifiedMode() {
		resources.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(resources.CpuShares)
	}
	if pids > 0 {
		resources.PidsLimit = &pids
	}
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: resources})
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("make cgroup %s: %w", path, err)
	}
	if err := m.Set(resources); err != nil {
		return fmt.Errorf("limit cgroup %s: %w", path, err)
	}
	return nil
}

// Remove implements Cgroups.
func (hostCgroups) Remove(path string) error {
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{SkipDevices: true}})
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	if err := m.Destroy(); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

// Pods implements Cgroups.
func (hostCgroups) Pods(parent string) (map[types.UID]string, error) {
	out := map[types.UID]string{}
	for _, root := range cgroupRoots {
		for _, class := range []string{"", "burstable", "besteffort"} {
			dir := path.Join("/", parent, "kubepods", class)
			entries, err := os.ReadDir(path.Join(root, dir))
			if os.IsNotExist(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("list cgroups: %w", err)
			}
			for _, e := range entries {
				if uid, isPod := strings.CutPrefix(e.Name(), "pod"); isPod && e.IsDir() {
					out[types.UID(uid)] = path.Join(dir, e.Name())
				}
			}
		}
	}
	return out, nil
}
