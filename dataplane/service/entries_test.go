package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft.dev/weft/dataplane/bpfobj"
)

func frontend(addr string, backends ...string) Frontend {
	f := Frontend{Service: "test/web:http", Kind: ClusterIP, Addr: netip.MustParseAddr(addr), Port: 80, Protocol: TCP}
	for _, b := range backends {
		f.Internal = append(f.Internal, Backend{Addr: netip.MustParseAddr(b), Port: 8080})
	}
	f.External = f.Internal
	return f
}

func compute(t *testing.T, ids *IDs, frontends ...Frontend) Entries {
	t.Helper()
	entries, errs := Compute(frontends, ids)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return entries
}

func TestFrontendIsEncodedAsTheProgramsReadIt(t *testing.T) {
	f := frontend("10.96.0.1", "10.244.0.5", "10.244.0.6")
	f.Affinity, f.KeepSource = 1500*time.Millisecond, true
	f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}
	entries := compute(t, &IDs{}, f)

	key := bpfobj.MapsServiceKey{Protocol: 6, Port: htons(80)}
	copy(key.Addr.B[:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1})
	want := bpfobj.MapsService{
		InternalList: 1, InternalCount: 2, ExternalList: 1, ExternalCount: 2,
		AffinitySeconds: 2, SourceSet: 1, Flags: 2,
	}
	if got := entries.Services[key]; got != want {
		t.Errorf("service is %+v, want %+v", got, want)
	}
	backend := entries.Backends[bpfobj.MapsBackendKey{List: 1, Slot: 1}]
	if backend.Addr.B[15] != 6 || backend.Port != htons(8080) {
		t.Errorf("second backend is %+v", backend)
	}
	prefix := bpfobj.MapsSourceRangeKey{Prefixlen: 32 + 96 + 24, Set: htonl(1)}
	copy(prefix.Addr[:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 0})
	if _, ok := entries.Ranges[prefix]; !ok {
		t.Errorf("source ranges are %+v, want %+v", entries.Ranges, prefix)
	}
}

func TestEqualListsShareANumberAndChangedOnesGetANewOne(t *testing.T) {
	ids := &IDs{}
	first := compute(t, ids, frontend("10.96.0.1", "10.244.0.5"), frontend("10.96.0.2", "10.244.0.5"))
	if len(first.Backends) != 1 {
		t.Errorf("%d backends, want the one list that both share", len(first.Backends))
	}
	second := compute(t, ids, frontend("10.96.0.1", "10.244.0.6"))
	ids.Keep(second)
	third := compute(t, ids, frontend("10.96.0.1", "10.244.0.5"))
	for key := range third.Backends {
		if _, ok := first.Backends[key]; ok {
			t.Errorf("list number %d was given again", key.List)
		}
	}
}

func TestNumbersSurviveARestart(t *testing.T) {
	before := compute(t, &IDs{}, frontend("10.96.0.1", "10.244.0.5", "10.244.0.6"), frontend("10.96.0.2", "10.244.0.7"))
	after := compute(t, NewIDs(before), frontend("10.96.0.2", "10.244.0.7"), frontend("10.96.0.1", "10.244.0.5", "10.244.0.6"))
	if !maps.Equal(before.Services, after.Services) || !maps.Equal(before.Backends, after.Backends) {
		t.Errorf("entries changed:\n%+v\n%+v", before, after)
	}
}

func TestHalfWrittenListIsNotTakenOver(t *testing.T) {
	whole := compute(t, &IDs{}, frontend("10.96.0.1", "10.244.0.5", "10.244.0.6"))
	half := Entries{Backends: maps.Clone(whole.Backends)} // died before the frontend was written
	delete(half.Backends, bpfobj.MapsBackendKey{List: 1, Slot: 1})
	after := compute(t, NewIDs(half), frontend("10.96.0.1", "10.244.0.5"))
	for key := range after.Backends {
		if key.List == 1 {
			t.Error("the number of the half-written list was used again")
		}
	}
}

func TestImpossibleFrontendsAreNamedAndTheOthersKept(t *testing.T) {
	mixed := frontend("10.96.0.1", "10.244.0.5")
	mixed.Internal = []Backend{{Addr: netip.MustParseAddr("2001:db8::1"), Port: 80}}
	sctp := frontend("10.96.0.2", "10.244.0.5")
	sctp.Protocol = SCTP
	entries, errs := Compute([]Frontend{mixed, sctp, frontend("10.96.0.3", "10.244.0.5")}, &IDs{})
	if len(errs) != 2 || len(entries.Services) != 1 {
		t.Errorf("%d errors and %d services: %v", len(errs), len(entries.Services), errs)
	}
}

func TestOrderDoesNotMatter(t *testing.T) {
	ids := &IDs{}
	var all []Frontend
	for i := range 50 {
		all = append(all, frontend(fmt.Sprintf("10.96.0.%d", i), fmt.Sprintf("10.244.0.%d", i%7)))
	}
	want := compute(t, ids, all...)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10 {
		shuffled := slices.Clone(all)
		rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		got := compute(t, ids, shuffled...)
		if !maps.Equal(got.Services, want.Services) || !maps.Equal(got.Backends, want.Backends) {
			t.Fatal("another order gave other entries")
		}
	}
}

func BenchmarkCompute(b *testing.B) {
	for _, n := range []int{10, 10000} {
		var all []Frontend
		for i := range n {
			f := frontend(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String())
			for j := range 3 {
				f.Internal = append(f.Internal, Backend{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i), byte(j)}), Port: 8080})
			}
			f.External = f.Internal
			all = append(all, f)
		}
		b.Run(fmt.Sprintf("%d Services", n), func(b *testing.B) {
			ids := &IDs{}
			for b.Loop() {
				Compute(all, ids)
			}
		})
	}
}
