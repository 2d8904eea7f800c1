package localcluster

import "testing"

func TestNodesClaimTheirShareOfTheMachine(t *testing.T) {
	whole := machine{cpus: 2, memoryBytes: 24 << 30, diskBytes: 100 << 30}
	tests := map[string]struct {
		nodes   int
		machine machine
		want    string
	}{
		"one node claims all of it":                {1, whole, "cpu=2000m,memory=25165824Ki,ephemeral-storage=104857600Ki"},
		"two nodes claim half each":                {2, whole, "cpu=1000m,memory=12582912Ki,ephemeral-storage=52428800Ki"},
		"thirds are rounded down":                  {3, whole, "cpu=666m,memory=8388608Ki,ephemeral-storage=34952533Ki"},
		"what cannot be measured is left to nodes": {2, machine{cpus: 1}, "cpu=500m"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := (&Cluster{Nodes: test.nodes}).share(test.machine); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}
