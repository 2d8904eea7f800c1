package bpfmap

import (
	"errors"
	"maps"
	"testing"

	"pgregory.net/rapid"
)

func TestSyncReachesWhatIsWantedAndThenWritesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := rapid.MapOf(rapid.Uint8(), rapid.Uint8())
		have, want := entries.Draw(t, "have"), entries.Draw(t, "want")
		kernel := &Memory[uint8, uint8]{Entries: maps.Clone(have)}
		if _, err := Sync(kernel, have, want); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(kernel.Entries, want) || !maps.Equal(have, want) {
			t.Fatalf("kernel has %v, have is %v, want %v", kernel.Entries, have, want)
		}
		if n, err := Sync(kernel, have, want); n != 0 || err != nil {
			t.Fatalf("second Sync wrote %d entries, %v", n, err)
		}
	})
}

func TestFailedWritesAreMadeUpForByTheNextSync(t *testing.T) {
	want := map[int]int{1: 10, 2: 20, 3: 30}
	have := map[int]int{2: 2, 4: 4}
	refused := errors.New("no memory")
	kernel := &Memory[int, int]{Entries: maps.Clone(have), Fail: func(k int) error {
		if k%2 == 0 {
			return refused
		}
		return nil
	}}
	if _, err := Sync(kernel, have, want); !errors.Is(err, refused) {
		t.Errorf("Sync says %v, want %v", err, refused)
	}
	kernel.Fail = nil
	if n, err := Sync(kernel, have, want); n != 2 || err != nil {
		t.Errorf("second Sync wrote %d entries, %v; want 2", n, err)
	}
	if !maps.Equal(kernel.Entries, want) {
		t.Errorf("kernel has %v, want %v", kernel.Entries, want)
	}
}

func TestAddComesBeforeDelete(t *testing.T) {
	var order []int
	kernel := &Memory[int, int]{Entries: map[int]int{1: 1}, Fail: func(k int) error {
		order = append(order, k)
		return nil
	}}
	if _, err := Sync(kernel, map[int]int{1: 1}, map[int]int{2: 2}); err != nil {
		t.Fatal(err)
	}
	if len(order) != 2 || order[0] != 2 {
		t.Errorf("wrote in the order %v, want 2 added before 1 is deleted", order)
	}
}
