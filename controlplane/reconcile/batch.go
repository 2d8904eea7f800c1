package reconcile

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// maxParallel bounds the API calls that one step of one controller has in flight.
// They are answered in the same process mostly, where more of them than it has
// processors only delay others, above all the watches that bring the result.
const maxParallel = 16

// SlowStart calls do for 0 … n-1 in batches of 1, 2, 4, …, each batch at
// once, and stops after the first batch with an error. So a quota that is
// used up costs one call, not n. It returns how many calls succeeded and the
// first error.
func SlowStart(ctx context.Context, n int, do func(ctx context.Context, i int) error) (int, error) {
	done := 0
	for size := 1; done < n; size *= 2 {
		size = min(size, n-done)
		errs := inParallel(ctx, done, size, do)
		done += size - len(errs)
		if len(errs) > 0 {
			return done, errs[0]
		}
	}
	return done, nil
}

// Parallel calls do for 0 … n-1, many at once, and joins the errors.
func Parallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	return errors.Join(inParallel(ctx, 0, n, do)...)
}

// inParallel calls do for first … first+n-1 and returns the errors. A goroutine
// makes many calls, one after the other: its stack need grow only once.
func inParallel(ctx context.Context, first, n int, do func(ctx context.Context, i int) error) []error {
	if n == 1 {
		if err := do(ctx, first); err != nil {
			return []error{err}
		}
		return nil
	}
	var (
		callers sync.WaitGroup
		next    atomic.Int64
		mu      sync.Mutex
		errs    []error
	)
	for range min(n, maxParallel) {
		callers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(ctx, first+i); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	callers.Wait()
	return errs
}
