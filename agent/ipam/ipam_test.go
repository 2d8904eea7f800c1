package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func prefixes(s ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range s {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

func open(t testing.TB, dir string, cidrs ...string) *Pool {
	t.Helper()
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	p.SetPrefixes(prefixes(cidrs...))
	return p
}

func sandbox(id any) Owner {
	return Owner{SandboxID: fmt.Sprint("sandbox-", id), IfName: "eth0", Pod: "default/web"}
}

func reserve(t testing.TB, p *Pool, o Owner) []netip.Addr {
	t.Helper()
	addrs, err := p.Reserve(o)
	if err != nil {
		t.Fatal(err)
	}
	return addrs
}

func TestReserveGivesOneAddressPerFamily(t *testing.T) {
	p := open(t, t.TempDir(), "fd00:10::/64", "10.244.1.0/24")
	got := fmt.Sprint(reserve(t, p, sandbox(1)))
	if got != "[10.244.1.2 fd00:10::2]" {
		t.Errorf("got %s", got)
	}
	if again := fmt.Sprint(reserve(t, p, sandbox(1))); again != got {
		t.Errorf("asked again: %s, want the same %s", again, got)
	}
}

func TestSandboxGetsTheSecondFamilyWhenTheNodeDoes(t *testing.T) {
	p := open(t, t.TempDir(), "10.244.1.0/24")
	first := reserve(t, p, sandbox(1))
	p.SetPrefixes(prefixes("10.244.1.0/24", "fd00:10::/64"))
	both := reserve(t, p, sandbox(1))
	if len(both) != 2 || both[0] != first[0] || !both[1].Is6() {
		t.Errorf("first %v, then %v", first, both)
	}
}

func TestReleasedAddressesRestUntilTheOthersAreUsed(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, "10.0.0.0/29") // .2 to .6
	for i := range 3 {
		reserve(t, p, sandbox(i))
	}
	if err := p.Release(sandbox(0)); err != nil {
		t.Fatal(err)
	}
	p = open(t, dir, "10.0.0.0/29") // a restart does not change that
	var got []string
	for i := 3; i < 6; i++ {
		got = append(got, reserve(t, p, sandbox(i))[0].String())
	}
	if want := []string{"10.0.0.5", "10.0.0.6", "10.0.0.2"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestExhaustedPoolSaysSoAndRecovers(t *testing.T) {
	p := open(t, t.TempDir(), "10.0.0.0/30", "10.0.1.0/30") // one pod each: .2
	reserve(t, p, sandbox(1))
	reserve(t, p, sandbox(2))
	_, err := p.Reserve(sandbox(3))
	var exhausted *ExhaustedError
	if !errors.As(err, &exhausted) || exhausted.Taken != 2 {
		t.Fatalf("error %v, want ExhaustedError with 2 taken", err)
	}
	if err := p.Release(sandbox(1)); err != nil {
		t.Fatal(err)
	}
	if got := reserve(t, p, sandbox(3)); got[0].String() != "10.0.0.2" {
		t.Errorf("after a release: %v", got)
	}
}

func TestExhaustedFamilyLeavesTheOtherUntouched(t *testing.T) {
	p := open(t, t.TempDir(), "10.0.0.0/24", "fd00::/126") // IPv6: ::2 and ::3
	for i := range 2 {
		reserve(t, p, sandbox(i))
	}
	if _, err := p.Reserve(sandbox(2)); err == nil {
		t.Fatal("want an error")
	}
	if n := len(p.Reserved()); n != 4 {
		t.Errorf("%d addresses reserved, want 4: %v", n, p.Reserved())
	}
}

func TestNodeWithoutPrefix(t *testing.T) {
	p := open(t, t.TempDir())
	if _, err := p.Reserve(sandbox(1)); !errors.Is(err, ErrNoPrefix) {
		t.Errorf("error %v, want ErrNoPrefix", err)
	}
}

func TestRestartForgetsNothing(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, "10.0.0.0/24", "fd00::/64")
	want := reserve(t, p, sandbox(1))
	for _, name := range []string{tempPrefix + "crashed"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p = open(t, dir, "10.0.0.0/24", "fd00::/64")
	if got := reserve(t, p, sandbox(1)); !slices.Equal(got, want) {
		t.Errorf("after a restart %v, before %v", got, want)
	}
	if got := reserve(t, p, sandbox(2)); slices.Contains(got, want[0]) {
		t.Errorf("%v handed out twice", got)
	}
	if owner := p.Reserved()[want[0]]; owner.Pod != "default/web" {
		t.Errorf("owner %+v", owner)
	}
}

func TestAddressWithUnreadableOwnerStaysTakenUntilCollected(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "10.0.0.2"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := open(t, dir, "10.0.0.0/24")
	if got := reserve(t, p, sandbox(1)); got[0].String() != "10.0.0.3" {
		t.Errorf("got %v", got)
	}
	if err := p.Collect(func(o Owner) bool { return o == sandbox(1) }); err != nil {
		t.Fatal(err)
	}
	if got := p.Reserved(); len(got) != 1 || got[netip.MustParseAddr("10.0.0.3")] != sandbox(1) {
		t.Errorf("after Collect: %v", got)
	}
}

func TestTwoProcessesNeverShareAnAddress(t *testing.T) {
	dir := t.TempDir()
	pools := []*Pool{open(t, dir, "10.0.0.0/24"), open(t, dir, "10.0.0.0/24")}
	var (
		mu   sync.Mutex
		seen = map[netip.Addr]int{}
		wg   sync.WaitGroup
	)
	for i := range 40 {
		wg.Go(func() {
			addrs, err := pools[i%2].Reserve(sandbox(i))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			seen[addrs[0]]++
			mu.Unlock()
		})
	}
	wg.Wait()
	for addr, n := range seen {
		if n > 1 {
			t.Errorf("%s handed out %d times", addr, n)
		}
	}
}

func TestWalkVisitsEveryUsableAddressOnce(t *testing.T) {
	ps := prefixes("10.0.0.0/29", "10.0.1.0/31", "10.0.2.7/32")
	var all []netip.Addr
	for addr := range walk(ps, netip.Addr{}) {
		all = append(all, addr)
	}
	if len(all) != 5+2+1 {
		t.Fatalf("walked %v", all)
	}
	for _, last := range append(slices.Clone(all), netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("192.0.2.1")) {
		var got []netip.Addr
		for addr := range walk(ps, last) {
			got = append(got, addr)
		}
		if i := slices.Index(all, last); i >= 0 && got[len(got)-1] != last {
			t.Errorf("behind %s: %v, want it to come last", last, got)
		}
		slices.SortFunc(got, netip.Addr.Compare)
		if !slices.Equal(got, all) {
			t.Errorf("behind %s: %v, want all of %v", last, got, all)
		}
	}
}

// TestNoAddressIsEverSharedAtRandom runs random reservations, releases,
// collections and restarts.
func TestNoAddressIsEverSharedAtRandom(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		p, have := open(t, dir, "10.0.0.0/28"), map[Owner][]netip.Addr{}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			o := sandbox(rapid.IntRange(0, 15).Draw(rt, "sandbox"))
			switch rapid.SampledFrom([]string{"reserve", "release", "restart"}).Draw(rt, "step") {
			case "reserve":
				addrs, err := p.Reserve(o)
				if err != nil && len(have) < 13 {
					rt.Fatal(err)
				}
				if err == nil {
					have[o] = addrs
				}
			case "release":
				if err := p.Release(o); err != nil {
					rt.Fatal(err)
				}
				delete(have, o)
			case "restart":
				p = open(t, dir, "10.0.0.0/28")
			}
			reserved := p.Reserved()
			if len(reserved) != len(have) {
				rt.Fatalf("reserved %v, want %v", reserved, have)
			}
			for o, addrs := range have {
				if reserved[addrs[0]] != o {
					rt.Fatalf("%s belongs to %v, want %v", addrs[0], reserved[addrs[0]], o)
				}
			}
		}
	})
}
