package pods

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CPU in the units of cgroup v1 (kubernetes/pkg/kubelet/cm/helpers_linux.go).
const (
	sharesPerCPU   = 1024
	minShares      = 2
	maxShares      = 262144
	quotaPeriod    = 100_000 // µs
	minQuota       = 1000    // µs
	millisPerCPU   = 1000
	guaranteedOOM  = -997
	bestEffortOOM  = 1000
	criticalOOM    = -997
	criticalSystem = 2_000_000_000 // priority from which a pod is critical
)

func cpuShares(milli int64) int64 {
	return min(max(milli*sharesPerCPU/millisPerCPU, minShares), maxShares)
}

// cpuQuota is the run time per period, in µs; 0 means no limit.
func cpuQuota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*quotaPeriod/millisPerCPU, minQuota)
}

// containerResources are the limits of one container. memoryCapacity is the
// node's, in bytes.
func containerResources(pod *corev1.Pod, c *corev1.Container, memoryCapacity int64) *runtimeapi.LinuxContainerResources {
	cpuLimit := limitOf(pod, c, corev1.ResourceCPU)
	cpuRequest, requested := c.Resources.Requests[corev1.ResourceCPU]
	if !requested {
		cpuRequest = cpuLimit
	}
	memoryLimit := limitOf(pod, c, corev1.ResourceMemory)
	out := &runtimeapi.LinuxContainerResources{
		CpuPeriod:          quotaPeriod,
		CpuQuota:           cpuQuota(cpuLimit.MilliValue()),
		CpuShares:          cpuShares(cpuRequest.MilliValue()),
		MemoryLimitInBytes: memoryLimit.Value(),
		OomScoreAdj:        oomScoreAdj(pod, c, memoryCapacity),
	}
	return out
}

// limitOf is a container's limit, else its pod's, else zero.
func limitOf(pod *corev1.Pod, c *corev1.Container, name corev1.ResourceName) resource.Quantity {
	limit := c.Resources.Limits[name]
	if limit.IsZero() && pod.Spec.Resources != nil {
		return pod.Spec.Resources.Limits[name]
	}
	return limit
}

// oomScoreAdj says how soon the kernel kills the container when memory is
// short (kubernetes/pkg/kubelet/qos/policy.go).
func oomScoreAdj(pod *corev1.Pod, c *corev1.Container, memoryCapacity int64) int64 {
	if pod.Spec.Priority != nil && *pod.Spec.Priority >= criticalSystem {
		return criticalOOM
	}
	switch pod.Status.QOSClass {
	case corev1.PodQOSGuaranteed:
		return guaranteedOOM
	case corev1.PodQOSBurstable:
	default:
		return bestEffortOOM
	}
	if memoryCapacity <= 0 {
		return bestEffortOOM - 1
	}
	adjust := 1000 - 1000*c.Resources.Requests.Memory().Value()/memoryCapacity
	// Above guaranteed pods by at least 3, below best-effort ones.
	return min(max(adjust, 1000+guaranteedOOM), bestEffortOOM-1)
}

// podResources are the limits of the pod's cgroup, in CRI's form.
func podResources(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	out := &runtimeapi.LinuxContainerResources{
		CpuPeriod: quotaPeriod,
		CpuShares: cpuShares(requests.Cpu().MilliValue()),
	}
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	if cpu, all := limits[corev1.ResourceCPU]; all && everyLimit(pod, corev1.ResourceCPU) {
		out.CpuQuota = cpuQuota(cpu.MilliValue())
	}
	if memory, all := limits[corev1.ResourceMemory]; all && everyLimit(pod, corev1.ResourceMemory) {
		out.MemoryLimitInBytes = memory.Value()
	}
	return out
}

// everyLimit reports whether the pod as a whole is limited: itself, or every
// one of its containers.
func everyLimit(pod *corev1.Pod, name corev1.ResourceName) bool {
	if pod.Spec.Resources != nil {
		if _, ok := pod.Spec.Resources.Limits[name]; ok {
			return true
		}
	}
	all := true
	check := func(list []corev1.Container) {
		for i := range list {
			limit := list[i].Resources.Limits[name]
			all = all && !limit.IsZero()
		}
	}
	check(pod.Spec.InitContainers)
	check(pod.Spec.Containers)
	return all
}
