package agent

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"weft.dev/weft/agent/node"
)

// thresholds reads EvictionHard, in kubelet's words
// (https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#hard-eviction-thresholds).
// What is not named keeps its default.
func (c Config) thresholds() (node.Thresholds, error) {
	var t node.Thresholds
	var errs []error
	for signal, text := range c.EvictionHard {
		var err error
		switch signal {
		case "memory.available":
			var q resource.Quantity
			if q, err = resource.ParseQuantity(text); err == nil && q.Sign() <= 0 {
				err = errors.New("must be more than nothing")
			}
			t.MemoryAvailableBytes = q.Value()
		case "nodefs.available":
			t.DiskAvailable, err = parseShare(text)
		case "nodefs.inodesFree":
			t.InodesAvailable, err = parseShare(text)
		case "pid.available":
			t.PIDsAvailable, err = parseShare(text)
		default:
			err = errors.New("is none of memory.available, nodefs.available, nodefs.inodesFree, pid.available")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--eviction-hard %s=%s: %w", signal, text, err))
		}
	}
	return t, errors.Join(errs...)
}

// parseShare reads a percentage, "10%", as a share of 1.
func parseShare(text string) (float64, error) {
	number, isPercentage := strings.CutSuffix(text, "%")
	percent, err := strconv.ParseFloat(number, 64)
	if err != nil || !isPercentage || !(percent > 0 && percent < 100) {
		return 0, errors.New("is not a percentage between 0% and 100%")
	}
	return percent / 100, nil
}
