package job

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// indexes is a set of completion indexes: intervals that ascend and do not
// touch. Its text, as in status.completedIndexes, is "1,3-5,7"; two
// neighbours are written "3,4".
type indexes []interval

// interval holds first, last and all between them.
type interval struct{ first, last int }

// parseIndexes reads what is below completions. What does not parse is left out.
func parseIndexes(text string, completions int) indexes {
	var parsed indexes
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		last, err := strconv.Atoi(to)
		if last = min(last, completions-1); err == nil && first <= last {
			parsed = append(parsed, interval{first, last})
		}
	}
	return indexes(nil).union(parsed)
}

// indexSet holds the given indexes.
func indexSet(list ...int) indexes {
	set := make(indexes, 0, len(list))
	for _, i := range list {
		set = append(set, interval{i, i})
	}
	return indexes(nil).union(set)
}

// union holds what is in s or in other.
func (s indexes) union(other indexes) indexes {
	all := slices.Concat(s, other)
	slices.SortFunc(all, func(a, b interval) int { return cmp.Compare(a.first, b.first) })
	var merged indexes
	for _, next := range all {
		if n := len(merged); n > 0 && next.first <= merged[n-1].last+1 {
			merged[n-1].last = max(merged[n-1].last, next.last)
		} else {
			merged = append(merged, next)
		}
	}
	return merged
}

// common counts what is in both s and other.
func (s indexes) common(other indexes) int {
	n := 0
	for i, j := 0, 0; i < len(s) && j < len(other); {
		n += max(0, min(s[i].last, other[j].last)-max(s[i].first, other[j].first)+1)
		if s[i].last < other[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

// gaps returns the n lowest indexes below end that are not in s.
func (s indexes) gaps(n, end int) []int {
	var missing []int
	next := 0
	for _, taken := range append(slices.Clip(s), interval{end, end}) {
		for ; next < min(taken.first, end) && len(missing) < n; next++ {
			missing = append(missing, next)
		}
		next = max(next, taken.last+1)
	}
	return missing
}

func (s indexes) has(i int) bool {
	_, found := slices.BinarySearchFunc(s, i, func(in interval, i int) int {
		switch {
		case in.last < i:
			return -1
		case in.first > i:
			return 1
		}
		return 0
	})
	return found
}

func (s indexes) len() int {
	n := 0
	for _, in := range s {
		n += in.last - in.first + 1
	}
	return n
}

func (s indexes) String() string {
	var text strings.Builder
	for i, in := range s {
		if i > 0 {
			text.WriteByte(',')
		}
		text.WriteString(strconv.Itoa(in.first))
		switch in.last - in.first {
		case 0:
			continue
		case 1:
			text.WriteByte(',')
		default:
			text.WriteByte('-')
		}
		text.WriteString(strconv.Itoa(in.last))
	}
	return text.String()
}
