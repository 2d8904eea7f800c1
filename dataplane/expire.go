package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"weft.dev/weft/dataplane/conntrack"
)

// expiryInterval is how often flows that are over are looked for.
const expiryInterval = 30 * time.Second

// Expire deletes the tracked flows that are over. An open Dataplane does so
// by itself from time to time.
func (d *Dataplane) Expire() error {
	now, err := conntrack.SinceBoot()
	if err != nil {
		return err
	}
	_, _, err = d.flows.Expire(now)
	return err
}

// expireUntil runs Expire from time to time until ctx is done.
func (d *Dataplane) expireUntil(ctx context.Context) {
	defer close(d.expired)
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := d.Expire(); err != nil {
				slog.ErrorContext(ctx, "expire tracked flows", "error", fmt.Errorf("dataplane: %w", err))
			}
		}
	}
}
