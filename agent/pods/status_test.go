package pods

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestAContainerCreatedButNotStartedWaitsAsItsPodDoes(t *testing.T) {
	tests := map[string]struct {
		inits []corev1.Container
		want  string
	}{
		"a pod without init containers":             {nil, "ContainerCreating"},
		"an init container is created, not started": {[]corev1.Container{{Name: "c"}}, "PodInitializing"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := facts{pod: &corev1.Pod{Spec: corev1.PodSpec{InitContainers: test.inits}}}
			got := f.instanceStatus(&corev1.Container{Name: "c"}, &container{state: stateCreated}, nil)
			if got.State.Waiting == nil || got.State.Waiting.Reason != test.want {
				t.Errorf("state is %+v, want waiting for %s", got.State, test.want)
			}
		})
	}
}
