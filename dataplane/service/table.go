package service

import (
	"errors"
	"maps"

	"github.com/cilium/ebpf"

	"weft.dev/weft/dataplane/bpfmap"
	"weft.dev/weft/dataplane/bpfobj"
)

// Table is the kernel's services. It is not safe for concurrent use.
type Table struct {
	services *bpfmap.Map[bpfobj.MapsServiceKey, bpfobj.MapsService]
	backends *bpfmap.Map[bpfobj.MapsBackendKey, bpfobj.MapsBackend]
	ranges   *bpfmap.Map[bpfobj.MapsSourceRangeKey, uint32]
	ids      *IDs

	// frontends are those last applied without an error.
	frontends []Frontend
	applied   bool
}

// Open reads what the kernel has. The maps, by their names in
// bpf/lib/maps.h, stay the caller's to close.
func Open(named func(string) *ebpf.Map) (*Table, error) {
	t := &Table{}
	var errs [3]error
	t.services, errs[0] = bpfmap.Open[bpfobj.MapsServiceKey, bpfobj.MapsService]("services", named("services"))
	t.backends, errs[1] = bpfmap.Open[bpfobj.MapsBackendKey, bpfobj.MapsBackend]("backends", named("backends"))
	t.ranges, errs[2] = bpfmap.Open[bpfobj.MapsSourceRangeKey, uint32]("source_ranges", named("source_ranges"))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	t.ids = NewIDs(t.Entries())
	return t, nil
}

// Entries copies what the kernel has.
func (t *Table) Entries() Entries {
	return Entries{
		Services: maps.Collect(t.services.All()),
		Backends: maps.Collect(t.backends.All()),
		Ranges:   maps.Collect(t.ranges.All()),
	}
}

// Apply makes the kernel's services exactly frontends and reports how many
// entries it wrote: lists first, then the frontends that name them, and in
// the opposite order for what goes. Errors are joined; the rest is applied.
func (t *Table) Apply(frontends []Frontend) (writes int, err error) {
	if t.applied && equal(frontends, t.frontends) {
		return 0, nil
	}
	t.applied = false
	want, errs := Compute(frontends, t.ids)
	step := func(n int, err error) bool {
		writes += n
		if err != nil {
			errs = append(errs, err)
		}
		return err == nil
	}
	// A frontend must not name a list that is not whole: without room for
	// all lists, frontends stay as they are.
	if step(t.backends.Add(want.Backends)) && step(t.ranges.Add(want.Ranges)) &&
		step(t.services.Sync(want.Services)) {
		step(t.backends.Prune(want.Backends))
		step(t.ranges.Prune(want.Ranges))
		t.ids.Keep(want)
	}
	if len(errs) > 0 {
		return writes, errors.Join(errs...)
	}
	t.frontends, t.applied = frontends, true
	return writes, nil
}

// Usage is how many entries each map has, and how many fit.
func (t *Table) Usage() map[string][2]int {
	return map[string][2]int{
		"services":      {t.services.Len(), t.services.Cap()},
		"backends":      {t.backends.Len(), t.backends.Cap()},
		"source_ranges": {t.ranges.Len(), t.ranges.Cap()},
	}
}
