package dataplane

import (
	"fmt"
	"net/netip"
	"testing"

	"weft.dev/weft/dataplane/loader"
	"weft.dev/weft/dataplane/service"
	"weft.dev/weft/dataplane/testnet"
)

// many returns n frontends with three backends each, the last of which tells
// rounds apart.
func many(n, round int) []service.Frontend {
	var all []service.Frontend
	for i := range n {
		var list []service.Backend
		for j := range 3 {
			list = append(list, service.Backend{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i), byte(j)}), Port: 8080})
		}
		if i == n/2 {
			list = append(list, service.Backend{Addr: netip.AddrFrom4([4]byte{10, 245, byte(round >> 8), byte(round)}), Port: 8080})
		}
		all = append(all, service.Frontend{
			Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Port: 80, Protocol: service.TCP,
			Internal: list, External: list,
		})
	}
	return all
}

// BenchmarkServices measures how long the kernel's services take to follow.
func BenchmarkServices(b *testing.B) {
	for _, n := range []int{10, 10000} {
		l, err := loader.Open(testnet.BPFFS(b)+"/node", loader.Settings{})
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		table, err := service.Open(l.Map)
		if err != nil {
			b.Fatal(err)
		}
		apply := func(frontends []service.Frontend) {
			if _, err := table.Apply(frontends); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("%d Services from nothing", n), func(b *testing.B) {
			for round := 0; b.Loop(); round++ {
				apply(nil)
				apply(many(n, round))
			}
		})
		rounds := [2][]service.Frontend{many(n, 0), many(n, 1)}
		b.Run(fmt.Sprintf("one backend of %d Services", n), func(b *testing.B) {
			for round := 0; b.Loop(); round++ {
				apply(rounds[round%2])
			}
		})
		b.Run(fmt.Sprintf("nothing of %d Services", n), func(b *testing.B) {
			for b.Loop() {
				apply(rounds[0])
			}
		})
	}
}
