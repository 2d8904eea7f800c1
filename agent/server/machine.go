package server

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// userHZ is the unit of /proc/stat, 1/100 s on every architecture Linux has
// Go for; see proc_stat(5).
const userHZ = 100

// machine is what the whole machine uses. Nodes that share a machine all
// report the same.
type machine struct {
	at, boot              time.Time
	cpu                   time.Duration // busy, summed over cores, since boot
	available, workingSet uint64        // bytes
}

func machineUsage() (machine, error) {
	m := machine{at: time.Now()}
	stat, err := readFields("/proc/stat")
	if err != nil {
		return m, err
	}
	memory, err := readFields("/proc/meminfo")
	if err != nil {
		return m, err
	}
	// user nice system idle iowait irq softirq steal; guest time is part of user.
	for i, ticks := range stat["cpu"] {
		if i < 8 && i != 3 && i != 4 {
			m.cpu += time.Duration(ticks) * time.Second / userHZ
		}
	}
	if boot := stat["btime"]; len(boot) == 1 {
		m.boot = time.Unix(int64(boot[0]), 0)
	}
	total, available := memory["MemTotal"], memory["MemAvailable"]
	if len(total) == 0 || len(available) == 0 {
		return m, fmt.Errorf("/proc/meminfo has no MemTotal or MemAvailable")
	}
	m.available = available[0] << 10
	m.workingSet = (total[0] - available[0]) << 10
	return m, nil
}

// readFields reads lines of a name and numbers.
func readFields(path string) (map[string][]uint64, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	values := map[string][]uint64{}
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20) // the line of interrupts is long
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) == 0 {
			continue
		}
		name := strings.TrimSuffix(fields[0], ":")
		for _, field := range fields[1:] {
			n, err := strconv.ParseUint(field, 10, 64)
			if err != nil {
				break
			}
			values[name] = append(values[name], n)
		}
	}
	return values, scanner.Err()
}
