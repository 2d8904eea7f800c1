package controlplane

import (
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// How a control plane trades memory for time: most of what it allocates is
// garbage when the request has been answered, and collecting it twice as
// rarely saves a tenth of the processor time of a busy server. Near memoryShare
// of the machine's memory it is collected as often as needed instead.
const (
	gcPercent   = 200
	memoryShare = 0.75
)

// TuneMemory sets the garbage collector of this process, unless the environment
// does (GOGC, GOMEMLIMIT). It is for the main function of a server.
func TuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	var machine unix.Sysinfo_t
	if os.Getenv("GOMEMLIMIT") != "" || unix.Sysinfo(&machine) != nil {
		return
	}
	debug.SetMemoryLimit(int64(memoryShare * float64(machine.Totalram) * float64(machine.Unit)))
}
