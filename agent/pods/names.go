package pods

// Labels and annotations on sandboxes and containers. The names are kubelet's
// (k8s.io/kubernetes/pkg/kubelet/kuberuntime/labels.go), so that tools which
// read them from the runtime keep working.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"

	annotationHash              = "io.kubernetes.container.hash"
	annotationRestartCount      = "io.kubernetes.container.restartCount"
	annotationMessagePath       = "io.kubernetes.container.terminationMessagePath"
	annotationMessagePolicy     = "io.kubernetes.container.terminationMessagePolicy"
	annotationTerminationGrace  = "io.kubernetes.pod.terminationGracePeriod"
	annotationDeletionGrace     = "io.kubernetes.pod.deletionGracePeriod"
	annotationPreStop           = "io.kubernetes.container.preStopHandler"
	annotationPorts             = "io.kubernetes.container.ports"
	annotationBackoff           = "weft.dev/restart-delay" // how long to wait once this container has ended, a Go duration
	containerIDPrefix           = "containerd://"
	managedHostsHeader          = "# Kubernetes-managed hosts file.\n"
	managedHostsHeaderOfTheNode = "# Kubernetes-managed hosts file (host network).\n"
)

// Reasons of a container that waits, and of pods and conditions, as users
// know them from kubelet.
const (
	reasonContainerCreating      = "ContainerCreating"
	reasonPodInitializing        = "PodInitializing"
	reasonCrashLoopBackOff       = "CrashLoopBackOff"
	reasonErrImagePull           = "ErrImagePull"
	reasonImagePullBackOff       = "ImagePullBackOff"
	reasonErrImageNeverPull      = "ErrImageNeverPull"
	reasonInvalidImageName       = "InvalidImageName"
	reasonImageInspectError      = "ImageInspectError"
	reasonCreateConfigError      = "CreateContainerConfigError"
	reasonCreateError            = "CreateContainerError"
	reasonRunContainerError      = "RunContainerError"
	reasonPostStartHookError     = "PostStartHookError"
	reasonContainerStatusUnknown = "ContainerStatusUnknown"

	reasonDeadlineExceeded       = "DeadlineExceeded"
	reasonEvicted                = "Evicted"
	reasonContainersNotReady     = "ContainersNotReady"
	reasonContainersNotInit      = "ContainersNotInitialized"
	reasonReadinessGatesNotReady = "ReadinessGatesNotReady"
	reasonPodCompleted           = "PodCompleted"
	reasonPodFailed              = "PodFailed"
)

// Reasons of events.
const (
	eventCreated             = "Created"
	eventStarted             = "Started"
	eventKilling             = "Killing"
	eventFailed              = "Failed"
	eventBackOff             = "BackOff"
	eventPulling             = "Pulling"
	eventPulled              = "Pulled"
	eventInspectFailed       = "InspectFailed"
	eventFailedMount         = "FailedMount"
	eventFailedSandbox       = "FailedCreatePodSandBox"
	eventSandboxChanged      = "SandboxChanged"
	eventFailedPostStartHook = "FailedPostStartHook"
	eventFailedPreStopHook   = "FailedPreStopHook"
	eventFailedKillPod       = "FailedKillPod"
)
