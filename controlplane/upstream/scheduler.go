package upstream

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/profile"
)

// RunScheduler schedules pods with upstream's default profile until ctx is
// done. It may be called again then.
func RunScheduler(ctx context.Context, loopback *rest.Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cfg := AsUser(loopback, SchedulerUser)
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make client of the scheduler: %w", err)
	}
	dynamicClient, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make client of the scheduler: %w", err)
	}
	defaults, err := latest.Default()
	if err != nil {
		return fmt.Errorf("configure scheduler: %w", err)
	}
	broadcaster := events.NewEventBroadcasterAdapterWithContext(ctx, client)
	broadcaster.StartRecordingToSink(ctx.Done())
	defer broadcaster.Shutdown()

	typed := scheduler.NewInformerFactory(client, 0, nil)
	dynamic := dynamicinformer.NewFilteredDynamicSharedInformerFactory(dynamicClient, 0, corev1.NamespaceAll, nil)
	var recorders profile.RecorderFactory = func(name string) events.EventRecorderLogger { return broadcaster.NewRecorder(name) }
	s, err := scheduler.New(ctx, client, typed, dynamic, recorders,
		scheduler.WithComponentConfigVersion(defaults.APIVersion),
		scheduler.WithKubeConfig(cfg),
		scheduler.WithProfiles(defaults.Profiles...),
		scheduler.WithPercentageOfNodesToScore(defaults.PercentageOfNodesToScore),
		scheduler.WithPodMaxBackoffSeconds(defaults.PodMaxBackoffSeconds),
		scheduler.WithPodInitialBackoffSeconds(defaults.PodInitialBackoffSeconds),
		scheduler.WithParallelism(defaults.Parallelism),
	)
	if err != nil {
		return fmt.Errorf("build scheduler: %w", err)
	}
	typed.Start(ctx.Done())
	defer typed.Shutdown()
	dynamic.Start(ctx.Done())
	defer dynamic.Shutdown()
	typed.WaitForCacheSync(ctx.Done())
	dynamic.WaitForCacheSync(ctx.Done())
	if err := s.WaitForHandlersSync(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("start scheduler: %w", err)
	}
	s.Run(ctx)
	return nil
}
