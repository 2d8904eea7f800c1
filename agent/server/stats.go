package server

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// usage is one look at what the pods use, joined by sandbox.
type usage struct {
	sandboxes  []*runtimeapi.PodSandbox
	pods       map[string]*runtimeapi.PodSandboxStats  // by sandbox
	containers map[string][]*runtimeapi.ContainerStats // by sandbox, running ones
	started    map[string]time.Time                    // by container
}

// usage asks the runtime about all running pods.
func (s *Server) usage(ctx context.Context) (*usage, error) {
	u := &usage{pods: map[string]*runtimeapi.PodSandboxStats{}, containers: map[string][]*runtimeapi.ContainerStats{}, started: map[string]time.Time{}}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	sandboxes, err := s.cfg.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{State: ready}})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	podStats, err := s.cfg.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("list sandbox statistics: %w", err)
	}
	stats, err := s.cfg.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("list container statistics: %w", err)
	}
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	containers, err := s.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{State: running}})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	u.sandboxes = sandboxes.Items
	for _, p := range podStats.Stats {
		u.pods[p.Attributes.GetId()] = p
	}
	sandboxOf := map[string]string{}
	for _, c := range containers.Containers {
		sandboxOf[c.Id] = c.PodSandboxId
		u.started[c.Id] = time.Unix(0, c.CreatedAt)
	}
	for _, c := range stats.Stats {
		if sandbox, ok := sandboxOf[c.Attributes.GetId()]; ok {
			u.containers[sandbox] = append(u.containers[sandbox], c)
		}
	}
	return u, nil
}

// summary answers with the statistics that kubectl top and autoscalers know
// from kubelet. What is not measured is left out, never zero.
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	u, err := s.usage(r.Context())
	if err != nil {
		s.runtimeFailure(err).write(w)
		return
	}
	machine, err := machineUsage()
	if err != nil {
		fail(http.StatusInternalServerError, "%v", err).write(w)
		return
	}
	answer := statsapi.Summary{Node: statsapi.NodeStats{
		NodeName: s.cfg.NodeName, StartTime: metav1.NewTime(machine.boot), Fs: fsStats(s.cfg.StateDir),
		CPU:    &statsapi.CPUStats{Time: metav1.NewTime(machine.at), UsageCoreNanoSeconds: new(uint64(machine.cpu))},
		Memory: &statsapi.MemoryStats{Time: metav1.NewTime(machine.at), AvailableBytes: &machine.available, WorkingSetBytes: &machine.workingSet},
	}}
	for _, sandbox := range u.sandboxes {
		answer.Pods = append(answer.Pods, u.podStats(sandbox))
	}
	s.writeJSON(w, answer)
}

func (u *usage) podStats(sandbox *runtimeapi.PodSandbox) statsapi.PodStats {
	p := statsapi.PodStats{
		PodRef:     statsapi.PodReference{Name: sandbox.Metadata.GetName(), Namespace: sandbox.Metadata.GetNamespace(), UID: sandbox.Metadata.GetUid()},
		StartTime:  metav1.NewTime(time.Unix(0, sandbox.CreatedAt)),
		Containers: []statsapi.ContainerStats{},
	}
	if stats := u.pods[sandbox.Id].GetLinux(); stats != nil {
		p.CPU, p.Memory, p.Network = cpuStats(stats.Cpu), memoryStats(stats.Memory), networkStats(stats.Network)
		if count := stats.Process.GetProcessCount(); count != nil {
			p.ProcessStats = &statsapi.ProcessStats{ProcessCount: &count.Value}
		}
	}
	for _, c := range u.containers[sandbox.Id] {
		p.Containers = append(p.Containers, statsapi.ContainerStats{
			Name: c.Attributes.GetMetadata().GetName(), StartTime: metav1.NewTime(u.started[c.Attributes.GetId()]),
			CPU: cpuStats(c.Cpu), Memory: memoryStats(c.Memory), Rootfs: layerStats(c.WritableLayer),
		})
	}
	return p
}

func cpuStats(c *runtimeapi.CpuUsage) *statsapi.CPUStats {
	if c == nil {
		return nil
	}
	return &statsapi.CPUStats{Time: nanoTime(c.Timestamp), UsageNanoCores: value(c.UsageNanoCores), UsageCoreNanoSeconds: value(c.UsageCoreNanoSeconds)}
}

func memoryStats(m *runtimeapi.MemoryUsage) *statsapi.MemoryStats {
	if m == nil {
		return nil
	}
	return &statsapi.MemoryStats{
		Time: nanoTime(m.Timestamp), AvailableBytes: value(m.AvailableBytes), UsageBytes: value(m.UsageBytes),
		WorkingSetBytes: value(m.WorkingSetBytes), RSSBytes: value(m.RssBytes),
		PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults),
	}
}

func networkStats(n *runtimeapi.NetworkUsage) *statsapi.NetworkStats {
	if n == nil {
		return nil
	}
	stats := &statsapi.NetworkStats{Time: nanoTime(n.Timestamp)}
	if n.DefaultInterface != nil {
		stats.InterfaceStats = interfaceStats(n.DefaultInterface)
		stats.Interfaces = append(stats.Interfaces, stats.InterfaceStats)
	}
	for _, i := range n.Interfaces {
		stats.Interfaces = append(stats.Interfaces, interfaceStats(i))
	}
	return stats
}

func interfaceStats(i *runtimeapi.NetworkInterfaceUsage) statsapi.InterfaceStats {
	return statsapi.InterfaceStats{Name: i.Name, RxBytes: value(i.RxBytes), RxErrors: value(i.RxErrors), TxBytes: value(i.TxBytes), TxErrors: value(i.TxErrors)}
}

func layerStats(f *runtimeapi.FilesystemUsage) *statsapi.FsStats {
	if f == nil {
		return nil
	}
	return &statsapi.FsStats{Time: nanoTime(f.Timestamp), UsedBytes: value(f.UsedBytes), InodesUsed: value(f.InodesUsed)}
}

// fsStats describes the file system that path is on.
func fsStats(path string) *statsapi.FsStats {
	var fs unix.Statfs_t
	if path == "" || unix.Statfs(path, &fs) != nil {
		return nil
	}
	block := uint64(fs.Bsize)
	return &statsapi.FsStats{
		Time: metav1.Now(), CapacityBytes: new(fs.Blocks * block), AvailableBytes: new(fs.Bavail * block),
		UsedBytes: new((fs.Blocks - fs.Bfree) * block), Inodes: new(fs.Files), InodesFree: new(fs.Ffree), InodesUsed: new(fs.Files - fs.Ffree),
	}
}

func nanoTime(ns int64) metav1.Time { return metav1.NewTime(time.Unix(0, ns)) }

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}
