package reconcile

import (
	"errors"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// ErrStale says that a cache does not yet hold what this controller itself
// wrote. The loop tries again when it does; nothing is wrong.
var ErrStale = errors.New("cache is behind own writes")

// Store is the part of an informer's store that a Fence reads: the newest
// resourceVersion it has seen, of any object.
type Store interface {
	LastStoreSyncResourceVersion() string
}

// Fence gives each owner read-your-own-writes over informer caches. It
// remembers the newest resourceVersion written on behalf of an owner, and lets
// a decision pass only when the caches have reached it. So a stale cache can
// never make a controller create the same thing twice.
//
// Versions of different objects of one cluster are comparable since
// Kubernetes 1.35 (KEP-5504). The zero Fence is ready for use.
type Fence struct {
	mu    sync.Mutex
	wrote map[types.NamespacedName]map[Store]string
}

// Wrote records that a write for owner was answered with resourceVersion, and
// that store is where it will appear.
func (f *Fence) Wrote(owner types.NamespacedName, store Store, resourceVersion string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	versions := f.wrote[owner]
	if versions == nil {
		if f.wrote == nil {
			f.wrote = map[types.NamespacedName]map[Store]string{}
		}
		versions = map[Store]string{}
		f.wrote[owner] = versions
	}
	if isNewer(resourceVersion, versions[store]) {
		versions[store] = resourceVersion
	}
}

// Check returns nil if all that was written for owner has reached the caches,
// else an ErrStale.
func (f *Fence) Check(owner types.NamespacedName) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for store, written := range f.wrote[owner] {
		if read := store.LastStoreSyncResourceVersion(); read != "" && isNewer(written, read) {
			return fmt.Errorf("%w: have %s, wrote %s", ErrStale, read, written)
		}
	}
	delete(f.wrote, owner)
	return nil
}

// Forget drops what is known of an owner that is gone.
func (f *Fence) Forget(owner types.NamespacedName) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.wrote, owner)
}

// isNewer reports whether a is a later version than b. Anything is later than
// no version; what cannot be compared is not later.
func isNewer(a, b string) bool {
	if b == "" {
		return a != ""
	}
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && order > 0
}
