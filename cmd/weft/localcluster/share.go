package localcluster

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// machine is what the nodes of all local clusters have in common.
type machine struct {
	cpus                   int
	memoryBytes, diskBytes uint64 // 0 if not known
}

// measureMachine measures this machine, and the file system that nodes keep
// their state on.
func measureMachine() machine {
	m := machine{cpus: runtime.NumCPU()}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.memoryBytes = uint64(info.Totalram) * uint64(info.Unit)
	}
	var fs unix.Statfs_t
	if unix.Statfs(stateRoot, &fs) == nil {
		m.diskBytes = fs.Blocks * uint64(fs.Bsize)
	}
	return m
}

// share is what each node of the cluster claims, in the form of the agent's
// --capacity: an equal part, so that the scheduler does not give the machine
// away once per node. The number of pods is a limit of each node's own, as on
// any other node, and not shared.
func (c *Cluster) share(m machine) string {
	nodes := uint64(c.Nodes)
	share := fmt.Sprintf("cpu=%dm", uint64(m.cpus)*1000/nodes)
	if m.memoryBytes > 0 {
		share += fmt.Sprintf(",memory=%dKi", m.memoryBytes>>10/nodes)
	}
	if m.diskBytes > 0 {
		share += fmt.Sprintf(",ephemeral-storage=%dKi", m.diskBytes>>10/nodes)
	}
	return share
}
