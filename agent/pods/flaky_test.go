package pods

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// TestFlakyRuntime holds that a runtime which fails now and then, and an agent
// that is restarted at odd moments, only cost time: the pod ends up running,
// and leaves nothing when it is deleted.
func TestFlakyRuntime(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				var mu sync.Mutex
				random := rand.New(rand.NewPCG(seed, seed))
				c.runtime.Fail = func(call, _ string) error {
					mu.Lock()
					defer mu.Unlock()
					if random.IntN(3) == 0 {
						return errors.New(call + " does not feel like it")
					}
					return nil
				}
				c.runtime.Missing["slow/image:1"] = true
				c.apply(`
spec:
  initContainers: [{name: proxy, restartPolicy: Always}]
  containers: [{name: a}, {name: b, image: "slow/image:1"}]`)
				for range 5 {
					mu.Lock()
					pause := time.Duration(random.IntN(3000)) * time.Millisecond
					mu.Unlock()
					sleep(pause)
					c.stop()
					c.start()
				}
				sleep(30 * time.Minute)
				pod := c.get()
				if got, want := printStatus(&pod.Status), "Running [ContainersReady Initialized PodReadyToStartContainers Ready]\n"+
					"proxy: running, ready\na: running, ready\nb: running, ready\n"; got != want {
					t.Errorf("status is\n%swant\n%s", got, want)
				}
				c.delete(30)
				sleep(time.Hour)
				if c.get() != nil {
					t.Error("pod is still there")
				}
				if left := c.leftovers(); left != "" {
					t.Errorf("left behind:\n%s", left)
				}
			})
		})
	}
}
