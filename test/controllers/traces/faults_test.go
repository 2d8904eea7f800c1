package traces

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kubetesting "k8s.io/client-go/testing"
)

const (
	// longestFault is how long writes are refused when something happens.
	// It is less than the deadlines that sequences set, which would else be
	// missed on one side only.
	longestFault = 3 * time.Second
	// recovery is longer than any back-off that such faults lead to, and than
	// what is held up takes then.
	recovery = 2 * time.Minute
)

// faults decides which writes of controllers are refused, and which are
// carried out though the answer is lost. How often, and which, follows from a
// seed; since the sides do not make the same calls, they do not meet the same faults.
type faults struct {
	mu     sync.Mutex
	random *rand.Rand
	until  time.Time
	// refused and lost are how likely each is.
	refused, lost float64
}

// newFaults returns nil for seed 0. Each attempt meets other faults, equally often.
func newFaults(seed, attempt uint64) *faults {
	if seed == 0 {
		return nil
	}
	random := rand.New(rand.NewPCG(seed, 1))
	return &faults{
		random:  rand.New(rand.NewPCG(seed, 2+attempt)),
		refused: []float64{0.2, 0.5, 0.8}[random.IntN(3)],
		lost:    []float64{0, 0.2}[random.IntN(2)],
	}
}

// begin has faults happen from now on, but not for long.
func (f *faults) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until = time.Now().Add(longestFault)
}

func (f *faults) happens(likely float64, action kubetesting.Action) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Before(f.until) && action.GetResource().Resource != "events" && f.random.Float64() < likely
}

func (f *faults) refuse(action kubetesting.Action) error {
	if f.happens(f.refused, action) {
		return apierrors.NewInternalError(errors.New("not now"))
	}
	return nil
}

func (f *faults) lose(action kubetesting.Action) bool { return f.happens(f.lost, action) }
