package reconcile

import (
	"context"
	"errors"
	"sync"
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

func inParallel(ctx context.Context, first, n int, do func(ctx context.Context, i int) error) []error {
	if n == 1 {
		if err := do(ctx, first); err != nil {
			return []error{err}
		}
		return nil
	}
	var (
		calls sync.WaitGroup
		slots = make(chan struct{}, maxParallel)
		mu    sync.Mutex
		errs  []error
	)
	for i := first; i < first+n; i++ {
		slots <- struct{}{}
		calls.Go(func() {
			defer func() { <-slots }()
			if err := do(ctx, i); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	calls.Wait()
	return errs
}
