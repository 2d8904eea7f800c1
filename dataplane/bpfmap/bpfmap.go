// Package bpfmap makes BPF maps hold what a Go map holds.
//
//	want map[K]V ──Add──► new and changed entries ──► kernel
//	             ──Prune► entries no longer wanted ──► kernel
//
// K and V are bpf2go types, so Go and C cannot drift apart.
package bpfmap

import (
	"errors"
	"fmt"
	"iter"
	"maps"

	"github.com/cilium/ebpf"
)

// Writer is what Add, Prune and Sync need of a map.
type Writer[K, V comparable] interface {
	Put(K, V) error
	Delete(K) error
}

// Add writes the entries of want that have lacks or holds differently, and
// reports how many it wrote. have follows every write that succeeded; errors
// are joined.
func Add[K, V comparable](m Writer[K, V], have, want map[K]V) (writes int, err error) {
	var errs []error
	for k, v := range want {
		if old, ok := have[k]; ok && old == v {
			continue
		}
		if err := m.Put(k, v); err != nil {
			errs = append(errs, err)
			continue
		}
		have[k] = v
		writes++
	}
	return writes, errors.Join(errs...)
}

// Prune deletes the entries of have that want lacks, and reports how many it
// deleted. have follows; errors are joined.
func Prune[K, V comparable](m Writer[K, V], have, want map[K]V) (writes int, err error) {
	var errs []error
	for k := range have {
		if _, ok := want[k]; ok {
			continue
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
			continue
		}
		delete(have, k)
		writes++
	}
	return writes, errors.Join(errs...)
}

// Sync makes m hold exactly want, adding before deleting, and reports how
// many entries it wrote.
func Sync[K, V comparable](m Writer[K, V], have, want map[K]V) (writes int, err error) {
	added, addErr := Add(m, have, want)
	deleted, pruneErr := Prune(m, have, want)
	return added + deleted, errors.Join(addErr, pruneErr)
}

// Map is a BPF map of which this process is the only writer, so that its
// contents need to be read only once. It is not safe for concurrent use.
type Map[K, V comparable] struct {
	m    *ebpf.Map
	name string
	have map[K]V
}

// Open reads the contents of m, which stays the caller's to close.
func Open[K, V comparable](name string, m *ebpf.Map) (*Map[K, V], error) {
	t := &Map[K, V]{m: m, name: name, have: map[K]V{}}
	var k K
	var v V
	entries := m.Iterate()
	for entries.Next(&k, &v) {
		t.have[k] = v
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", name, err)
	}
	return t, nil
}

// Put writes one entry to the kernel.
func (t *Map[K, V]) Put(k K, v V) error {
	if err := t.m.Put(&k, &v); err != nil {
		return fmt.Errorf("write to map %s (%d of %d entries used): %w", t.name, len(t.have), t.m.MaxEntries(), err)
	}
	return nil
}

// Delete removes one entry from the kernel.
func (t *Map[K, V]) Delete(k K) error {
	if err := t.m.Delete(&k); err != nil {
		return fmt.Errorf("delete from map %s: %w", t.name, err)
	}
	return nil
}

// Add, Prune and Sync are the functions of those names on this map.
func (t *Map[K, V]) Add(want map[K]V) (int, error)   { return Add(t, t.have, want) }
func (t *Map[K, V]) Prune(want map[K]V) (int, error) { return Prune(t, t.have, want) }
func (t *Map[K, V]) Sync(want map[K]V) (int, error)  { return Sync(t, t.have, want) }

// All yields the entries in no particular order.
func (t *Map[K, V]) All() iter.Seq2[K, V] { return maps.All(t.have) }

// Len is the number of entries, Cap how many fit.
func (t *Map[K, V]) Len() int { return len(t.have) }
func (t *Map[K, V]) Cap() int { return int(t.m.MaxEntries()) }

// Memory is a Writer without a kernel, for tests.
type Memory[K, V comparable] struct {
	Entries map[K]V
	// Fail, when not nil, is asked before each write.
	Fail func(K) error
}

// Put stores the entry.
func (m *Memory[K, V]) Put(k K, v V) error {
	if m.Fail != nil {
		if err := m.Fail(k); err != nil {
			return err
		}
	}
	m.Entries[k] = v
	return nil
}

// Delete removes the entry.
func (m *Memory[K, V]) Delete(k K) error {
	if m.Fail != nil {
		if err := m.Fail(k); err != nil {
			return err
		}
	}
	delete(m.Entries, k)
	return nil
}
