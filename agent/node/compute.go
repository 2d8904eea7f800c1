package node

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	nodeutil "k8s.io/component-helpers/node/util"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper"
)

// kubernetesVersion is the API this node speaks; scheduler, API server and
// upstream's tests compare it with theirs.
const kubernetesVersion = "v1.37.2"

const (
	// readyGrace is how long a ready node may have a problem, for instance while
	// the runtime restarts, before it is not ready; kubelet gives the runtime as much.
	readyGrace = 30 * time.Second
	// pressureHold keeps a pressure condition up after the pressure was last
	// seen, so that it does not swing.
	pressureHold = 5 * time.Minute
	// maxImages and maxImageNames bound the list of images, as kubelet.
	maxImages     = 50
	maxImageNames = 5
)

// Thresholds say when the machine is under pressure.
type Thresholds struct {
	MemoryAvailableBytes int64   // less than this, default 100 MiB
	DiskAvailable        float64 // share of bytes, default 0.10
	InodesAvailable      float64 // share of inodes, default 0.05
	PIDsAvailable        float64 // share of process numbers, default 0.05
}

func (t Thresholds) orDefault() Thresholds {
	return Thresholds{
		MemoryAvailableBytes: cmp.Or(t.MemoryAvailableBytes, 100<<20),
		DiskAvailable:        cmp.Or(t.DiskAvailable, 0.10),
		InodesAvailable:      cmp.Or(t.InodesAvailable, 0.05),
		PIDsAvailable:        cmp.Or(t.PIDsAvailable, 0.05),
	}
}

// Facts is all that the status is computed from.
type Facts struct {
	Config  Config // what was configured: addresses, capacity, thresholds, features
	Machine MachineFacts
	Runtime RuntimeFacts
	Images  []corev1.ContainerImage
	// Problem is what keeps the node from being ready, "" if nothing does;
	// ProblemFor is how long there has been one.
	Problem    string
	ProblemFor time.Duration
}

// MachineFacts is what the kernel and /etc say.
type MachineFacts struct {
	CPUs                                 int64
	MemoryBytes, MemoryAvailableBytes    int64
	DiskBytes, DiskAvailableBytes        int64
	Inodes, InodesFree                   int64
	PIDs, PIDsMax                        int64
	HugePages                            map[string]int64 // bytes reserved, by page size as in the resource name: "2Mi"
	SwapBytes                            int64
	Architecture, OSImage, KernelVersion string
	MachineID, SystemUUID, BootID        string
}

// RuntimeFacts is what the container runtime said when it last answered; its
// Name is empty if it never did.
type RuntimeFacts struct {
	Name, Version string
	Handlers      []corev1.NodeRuntimeHandler
	Features      *corev1.NodeFeatures
}

// compute returns the status that facts amount to. What others own (attached
// volumes, configuration, extended resources) and transition times are kept
// from old.
func compute(f Facts, old corev1.NodeStatus, now time.Time) corev1.NodeStatus {
	s := *old.DeepCopy()
	s.Addresses = addresses(f.Config)
	s.DaemonEndpoints.KubeletEndpoint.Port = f.Config.Port
	s.Capacity = capacity(f, old.Capacity)
	s.Allocatable = allocatable(f, s.Capacity)
	s.NodeInfo = nodeInfo(f, old.NodeInfo.ContainerRuntimeVersion)
	s.Images = topImages(f.Images)
	if f.Runtime.Name != "" {
		s.RuntimeHandlers = f.Runtime.Handlers
		s.Features = f.Runtime.Features
	}
	s.DeclaredFeatures = slices.Sorted(slices.Values(f.Config.DeclaredFeatures))
	s.VolumesInUse = nil // no volume here is attached by a controller
	s.Conditions = conditions(f, old.Conditions, now)
	return s
}

func addresses(c Config) []corev1.NodeAddress {
	var list []corev1.NodeAddress
	for _, a := range c.Addresses {
		list = append(list, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.Unmap().String()})
	}
	return append(list, corev1.NodeAddress{Type: corev1.NodeHostName, Address: c.Hostname})
}

// capacity is what the machine has, and the extended resources that somebody
// else put into the node's status, as the API lets administrators do.
func capacity(f Facts, old corev1.ResourceList) corev1.ResourceList {
	list := corev1.ResourceList{}
	for name, quantity := range old {
		if helper.IsExtendedResourceName(name) {
			list[name] = quantity.DeepCopy()
		}
	}
	maps.Copy(list, corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(f.Machine.CPUs, resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(f.Machine.MemoryBytes, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(f.Machine.DiskBytes, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(f.Config.MaxPods, resource.DecimalSI),
	})
	for size, bytes := range f.Machine.HugePages {
		list[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size)] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
	for name, quantity := range f.Config.Capacity {
		list[name] = quantity.DeepCopy()
	}
	return list
}

// allocatable leaves room for what is configured and for the thresholds below
// which the node reports pressure; huge pages are taken out of memory.
func allocatable(f Facts, capacity corev1.ResourceList) corev1.ResourceList {
	list := capacity.DeepCopy()
	take := func(name corev1.ResourceName, q resource.Quantity) {
		left, ok := list[name]
		if !ok {
			return
		}
		if left.Sub(q); left.Sign() < 0 {
			left.Set(0)
		}
		list[name] = left
	}
	for name, q := range f.Config.Reserved {
		take(name, q)
	}
	take(corev1.ResourceMemory, *resource.NewQuantity(f.Config.Thresholds.MemoryAvailableBytes, resource.BinarySI))
	storage := capacity[corev1.ResourceEphemeralStorage]
	take(corev1.ResourceEphemeralStorage, *resource.NewQuantity(int64(float64(storage.Value())*f.Config.Thresholds.DiskAvailable), resource.BinarySI))
	for size := range f.Machine.HugePages {
		take(corev1.ResourceMemory, capacity[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size)])
	}
	return list
}

func nodeInfo(f Facts, runtimeVersion string) corev1.NodeSystemInfo {
	info := corev1.NodeSystemInfo{
		MachineID:       f.Machine.MachineID,
		SystemUUID:      f.Machine.SystemUUID,
		BootID:          f.Machine.BootID,
		KernelVersion:   f.Machine.KernelVersion,
		OSImage:         f.Machine.OSImage,
		OperatingSystem: runtime.GOOS,
		Architecture:    f.Machine.Architecture,
		KubeletVersion:  kubernetesVersion + "+weft" + versionSuffix(f.Config.Version),
		Swap:            swap(f.Machine.SwapBytes),
	}
	info.ContainerRuntimeVersion = runtimeVersion
	if f.Runtime.Name != "" {
		info.ContainerRuntimeVersion = f.Runtime.Name + "://" + f.Runtime.Version
	}
	return info
}

// versionSuffix makes a version fit for the build metadata of semantic
// versioning: letters, digits, dots and hyphens.
func versionSuffix(version string) string {
	clean := []byte(version)
	for i, b := range clean {
		if !('0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || b == '.') {
			clean[i] = '-'
		}
	}
	if len(clean) == 0 {
		return ""
	}
	return "." + string(clean)
}

// topImages are the largest images, since those are worth scheduling by.
func topImages(images []corev1.ContainerImage) []corev1.ContainerImage {
	sorted := slices.SortedFunc(slices.Values(images), func(a, b corev1.ContainerImage) int {
		return cmp.Or(cmp.Compare(b.SizeBytes, a.SizeBytes), slices.Compare(a.Names, b.Names))
	})
	sorted = sorted[:min(len(sorted), maxImages)]
	for i := range sorted {
		sorted[i].Names = sorted[i].Names[:min(len(sorted[i].Names), maxImageNames)]
	}
	return sorted
}

// conditions are those of old that are not ours, and our four.
func conditions(f Facts, old []corev1.NodeCondition, now time.Time) []corev1.NodeCondition {
	s := corev1.NodeStatus{Conditions: slices.Clone(old)}
	t := f.Config.Thresholds
	under := t.pressure(f.Machine)
	for _, c := range []corev1.NodeCondition{
		pressure(corev1.NodeMemoryPressure, under.Memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory",
			fmt.Sprintf("less than %d MiB of memory available", t.MemoryAvailableBytes>>20), "sufficient memory available"),
		pressure(corev1.NodeDiskPressure, under.Disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure",
			fmt.Sprintf("less than %.0f%% of disk space or %.0f%% of inodes available", 100*t.DiskAvailable, 100*t.InodesAvailable), "no disk pressure"),
		pressure(corev1.NodePIDPressure, under.PIDs, "KubeletHasInsufficientPID", "KubeletHasSufficientPID",
			fmt.Sprintf("less than %.0f%% of process numbers available", 100*t.PIDsAvailable), "sufficient process numbers available"),
		ready(f, isReady(s)),
	} {
		set(&s, c, now)
	}
	return s.Conditions
}

// Pressure is what the machine is short of now.
type Pressure struct{ Memory, Disk, PIDs bool }

func (t Thresholds) pressure(m MachineFacts) Pressure {
	return Pressure{
		Memory: m.MemoryAvailableBytes < t.MemoryAvailableBytes,
		Disk:   scarce(m.DiskAvailableBytes, m.DiskBytes, t.DiskAvailable) || scarce(m.InodesFree, m.Inodes, t.InodesAvailable),
		PIDs:   scarce(m.PIDsMax-m.PIDs, m.PIDsMax, t.PIDsAvailable),
	}
}

func scarce(available, all int64, share float64) bool {
	return all > 0 && float64(available) < float64(all)*share
}

func pressure(kind corev1.NodeConditionType, under bool, reasonTrue, reasonFalse, messageTrue, messageFalse string) corev1.NodeCondition {
	if under {
		return corev1.NodeCondition{Type: kind, Status: corev1.ConditionTrue, Reason: reasonTrue, Message: messageTrue}
	}
	return corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reasonFalse, Message: messageFalse}
}

// ready keeps a node ready through problems shorter than readyGrace: the
// runtime or the agent restarts.
func ready(f Facts, wasReady bool) corev1.NodeCondition {
	if f.Problem == "" || wasReady && f.ProblemFor < readyGrace {
		return corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "weft agent is posting ready status"}
	}
	return corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady", Message: f.Problem}
}

func isReady(s corev1.NodeStatus) bool {
	_, c := nodeutil.GetNodeCondition(&s, corev1.NodeReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// set puts c into s. A pressure condition falls only when the pressure was
// last seen pressureHold ago; its heartbeat is when it was seen.
func set(s *corev1.NodeStatus, c corev1.NodeCondition, now time.Time) {
	c.LastHeartbeatTime = metav1.NewTime(now)
	c.LastTransitionTime = metav1.NewTime(now)
	i, old := nodeutil.GetNodeCondition(s, c.Type)
	switch {
	case old == nil:
		s.Conditions = append(s.Conditions, c)
		return
	case c.Type != corev1.NodeReady && old.Status == corev1.ConditionTrue && c.Status == corev1.ConditionFalse && now.Sub(old.LastHeartbeatTime.Time) < pressureHold:
		return
	case old.Status == c.Status:
		c.LastTransitionTime = old.LastTransitionTime
	}
	s.Conditions[i] = c
}

// withoutHeartbeats is the part of a status that is worth a write.
func withoutHeartbeats(s corev1.NodeStatus) corev1.NodeStatus {
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Conditions {
		s.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	return s
}

// newer compares resource versions, which are ordered numbers
// (https://kep.k8s.io/5504).
func newer(a, b string) bool {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	return errX == nil && errY == nil && x > y
}

// metadataPatch is a merge patch that adds the wanted labels and annotations;
// nil if all are there.
func metadataPatch(have, want *corev1.Node) []byte {
	missing := map[string]map[string]string{}
	add := func(field string, have, want map[string]string) {
		for key, value := range want {
			if present, ok := have[key]; ok && present == value {
				continue
			}
			if missing[field] == nil {
				missing[field] = map[string]string{}
			}
			missing[field][key] = value
		}
	}
	add("labels", have.Labels, want.Labels)
	add("annotations", have.Annotations, want.Annotations)
	if len(missing) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": missing})
	if err != nil {
		return nil // strings always encode
	}
	return patch
}

// swap reports swap space; the API refuses a capacity of 0.
func swap(bytes int64) *corev1.NodeSwapStatus {
	if bytes <= 0 {
		return nil
	}
	return &corev1.NodeSwapStatus{Capacity: &bytes}
}
