package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// errNotRunning says that a pid file names no running process.
var errNotRunning = errors.New("not running")

// process is a running program, a child of ours or one taken over.
type process struct {
	pid   int
	pidfd int
	ended chan struct{} // closed when the process has ended
	err   error         // valid once ended is closed
}

// identity is what a pid file holds. A pid alone may be reused; together with
// the start time (field 22 of /proc/PID/stat, clock ticks since boot) it names
// one process for good.
type identity struct {
	PID       int    `json:"pid"`
	StartTime string `json:"startTime"`
}

func open(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	return &process{pid: pid, pidfd: fd, ended: make(chan struct{})}, nil
}

// adopt opens the process that pidFile names, or returns errNotRunning.
func adopt(pidFile string) (*process, error) {
	pid, err := running(pidFile)
	if err != nil {
		return nil, err
	}
	p, err := open(pid)
	if err != nil {
		return nil, errNotRunning
	}
	go func() {
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}, -1)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EINTR) {
				p.err = err
				break
			}
		}
		close(p.ended)
	}()
	return p, nil
}

// PID returns the process that a program's pid file names, or 0 when it does
// not run.
func PID(runDir, program string) int {
	pid, err := running(runDir + "/" + program + ".pid")
	if err != nil {
		return 0
	}
	return pid
}

func running(pidFile string) (int, error) {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, errNotRunning
	}
	var id identity
	if json.Unmarshal(text, &id) != nil {
		return 0, errNotRunning
	}
	if now, err := startTime(id.PID); err != nil || now != id.StartTime {
		return 0, errNotRunning
	}
	return id.PID, nil
}

// record writes a pid file atomically.
func record(pidFile string, pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return err
	}
	text, err := json.Marshal(identity{PID: pid, StartTime: started})
	if err != nil {
		return err
	}
	next := pidFile + ".next"
	if err := os.WriteFile(next, text, 0o644); err != nil {
		return err
	}
	return os.Rename(next, pidFile)
}

// startTime reads field 22 of /proc/PID/stat (proc(5)); a zombie counts as
// ended.
func startTime(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The command, field 2, is in parentheses and may hold any character.
	_, rest, found := strings.Cut(string(text[max(0, strings.LastIndexByte(string(text), ')')):]), " ")
	fields := strings.Fields(rest)
	if !found || len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has an unknown form", pid)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return "", errNotRunning
	}
	return fields[19], nil
}

// stop asks the process to end and kills it after the given time.
func (p *process) stop(after time.Duration) {
	unix.PidfdSendSignal(p.pidfd, unix.SIGTERM, nil, 0)
	select {
	case <-p.ended:
	case <-time.After(after):
		unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
		<-p.ended
	}
}

func (p *process) close() { unix.Close(p.pidfd) }
