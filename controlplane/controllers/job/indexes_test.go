package job

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestIndexesAreWrittenAsTheAPISays(t *testing.T) {
	cases := []struct {
		name string
		list []int
		want string
	}{
		{"none", nil, ""},
		{"one", []int{4}, "4"},
		{"neighbours are listed", []int{3, 4}, "3,4"},
		{"three in a row are a range", []int{5, 3, 4}, "3-5"},
		{"ranges and single ones", []int{1, 3, 4, 5, 7, 8}, "1,3-5,7,8"},
		{"twice is once", []int{2, 2}, "2"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			set := indexSet(c.list...)
			if got := set.String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if got := parseIndexes(c.want, 100); !slices.Equal(got, set) {
				t.Errorf("read back as %v, want %v", got, set)
			}
		})
	}
}

func TestIndexesAreReadAsFarAsTheyMakeSense(t *testing.T) {
	cases := []struct{ name, text, want string }{
		{"what is not below completions is left out", "1,4-7,9", "1,4"},
		{"what is no number is left out", "1,x,2-y,3", "1,3"},
		{"a range backwards is left out", "3-1,4", "4"},
		{"neighbours are joined", "0,1,2-3", "0-3"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := parseIndexes(c.text, 5).String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestIndexesAreASet compares with a set that is plain to see.
func TestIndexesAreASet(t *testing.T) {
	const end = 30
	rapid.Check(t, func(t *rapid.T) {
		lists := rapid.SliceOfN(rapid.IntRange(0, end-1), 0, 20)
		a, b := lists.Draw(t, "a"), lists.Draw(t, "b")
		sa, sb := indexSet(a...), indexSet(b...)
		both, common, missing := sa.union(sb), 0, []int(nil)
		n := rapid.IntRange(0, end).Draw(t, "n")
		for i := range end {
			inA, inB := slices.Contains(a, i), slices.Contains(b, i)
			if both.has(i) != (inA || inB) {
				t.Fatalf("%v has %d: %v", both, i, both.has(i))
			}
			if inA && inB {
				common++
			}
			if !inA && len(missing) < n {
				missing = append(missing, i)
			}
		}
		if got := sa.common(sb); got != common {
			t.Fatalf("%v and %v have %d in common, not %d", sa, sb, common, got)
		}
		if got := sa.gaps(n, end); !slices.Equal(got, missing) {
			t.Fatalf("%d gaps in %v: got %v, want %v", n, sa, got, missing)
		}
		if got := parseIndexes(both.String(), end); !slices.Equal(got, both) || got.len() != both.len() {
			t.Fatalf("%v read back as %v", both, got)
		}
	})
}
