package controlplane

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Tune adapts this process to what a server does, its memory and its timers.
// It is for the main function. What it cannot do costs speed or processor time, no
// more; the error tells of it.
func Tune() error {
	tuneMemory()
	return tuneTimers()
}

// How a control plane trades memory for time: most of what it allocates is
// garbage when the request has been answered, and collecting it twice as
// rarely saves a tenth of the processor time of a busy server. Near memoryShare
// of the machine's memory it is collected as often as needed instead.
const (
	gcPercent   = 200
	memoryShare = 0.75
)

// tuneMemory sets the garbage collector of this process, unless the environment
// does (GOGC, GOMEMLIMIT).
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	var machine unix.Sysinfo_t
	if os.Getenv("GOMEMLIMIT") != "" || unix.Sysinfo(&machine) != nil {
		return
	}
	debug.SetMemoryLimit(int64(memoryShare * float64(machine.Totalram) * float64(machine.Unit)))
}

// timerSlack is how late timers may be on a machine that has nothing else to
// do (PR_SET_TIMERSLACK(2const); the kernel's default is 50 µs). An API server
// and its controllers have hundreds of timers a second, mostly to see that
// nothing has changed; those that come together wake the process once. It
// takes a third off what an idle server costs. A busy one runs its timers on time.
const timerSlack = 20 * time.Millisecond

// tuneTimers sets the slack of all threads that there are; a new thread has
// that of the one which made it.
func tuneTimers() error {
	slack := []byte(strconv.FormatInt(timerSlack.Nanoseconds(), 10))
	// One may have been made by a thread whose turn had not come yet.
	for range 2 {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("set timer slack: %w", err)
		}
		for _, t := range threads {
			err := os.WriteFile(filepath.Join("/proc", t.Name(), "timerslack_ns"), slack, 0)
			if err != nil && !os.IsNotExist(err) { // it may have ended
				return fmt.Errorf("set timer slack: %w", err)
			}
		}
	}
	return nil
}
