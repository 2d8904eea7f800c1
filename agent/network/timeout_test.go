package network

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"weft.dev/weft/dataplane"
)

func TestAddGivesUpInTimeAndTakesEverythingBack(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		k := newKernel()
		k.fail(func(dataplane.State) error { return errors.New("map is broken") })
		n, _, factory := create(t, dir, k, fakeDevices{k}, nodeObject("10.244.1.0/24"))
		ctx, cancel := context.WithCancel(t.Context())
		factory.Start(ctx.Done())
		factory.WaitForCacheSync(ctx.Done())
		go n.loop(ctx)
		defer factory.Shutdown()
		defer cancel()

		begin := time.Now()
		wantCode(t, n.handle(ctx, request("ADD", "s1")), codeTryAgainLater, "map is broken")
		if took := time.Since(begin); took != addTimeout {
			t.Errorf("ADD answered after %s, want %s", took, addTimeout)
		}
		begin = time.Now()
		if resp := n.handle(ctx, request("DEL", "s1")); resp.Error != nil {
			t.Errorf("DEL: %v", resp.Error)
		}
		if took := time.Since(begin); took > delTimeout {
			t.Errorf("DEL answered after %s", took)
		}
		synctest.Wait()
		if got := n.pool.Reserved(); len(got) != 0 {
			t.Errorf("addresses still taken: %v", got)
		}
	})
}

func TestFailingDataplaneIsTriedAgainLessAndLessOften(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		k := newKernel()
		k.fail(func(dataplane.State) error { return errors.New("map is broken") })
		n, _, factory := create(t, dir, k, fakeDevices{k}, nodeObject("10.244.1.0/24"))
		ctx, cancel := context.WithCancel(t.Context())
		factory.Start(ctx.Done())
		factory.WaitForCacheSync(ctx.Done())
		go n.loop(ctx)
		defer factory.Shutdown()
		defer cancel()

		time.Sleep(10 * time.Minute)
		synctest.Wait()
		// 9 tries until the delay has grown to its maximum, then two a minute.
		if tries := k.count(); tries < 20 || tries > 32 {
			t.Errorf("%d tries in ten minutes", tries)
		}
		k.fail(nil)
		time.Sleep(maxRetry)
		synctest.Wait()
		if err := n.status(); err != nil {
			t.Errorf("after recovery: %v", err)
		}
	})
}
