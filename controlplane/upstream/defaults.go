package upstream

import "time"

// Settings of kube-controller-manager that Weft keeps at upstream's defaults.
const (
	nodeMonitorPeriod         = 5 * time.Second
	nodeStartupGracePeriod    = time.Minute
	nodeEvictionRate          = 0.1  // nodes per second and zone
	secondaryNodeEvictionRate = 0.01 // the same, in an unhealthy large zone
	largeClusterSize          = 50   // nodes
	unhealthyZoneThreshold    = 0.55 // share of nodes that are not ready

	// terminatedPods is how many finished pods may exist before the oldest
	// are deleted.
	terminatedPods = 12500

	autoscalerPeriod         = 15 * time.Second
	autoscalerDownscale      = 5 * time.Minute // stabilization window
	autoscalerTolerance      = 0.1             // share of the target value
	autoscalerCPUPeriod      = 5 * time.Minute // after start
	autoscalerReadinessDelay = 30 * time.Second

	volumeBinderPeriod = 15 * time.Second
)
