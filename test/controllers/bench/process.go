package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a part of the benchmark in a process of its own.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

// start starts a part; what it writes goes to a file in dir, its CPU profile
// to the file profile, unless that is "".
func start(dir, profile, name string, args ...string) (*process, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{
		name: name,
		cmd:  exec.Command("/proc/self/exe", append([]string{name}, args...)...),
		log:  log.Name(),
		done: make(chan struct{}),
	}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), profileFile+"="+profile)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// alive returns an error with the end of the log if the process has ended.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %w\n%s", p.name, p.err, p.tail())
	default:
		return nil
	}
}

// tail is the end of the process' log.
func (p *process) tail() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(data[max(len(data)-2000, 0):])
}

// stop asks the process to end, and kills it if it has not after a while.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// clockTick is the unit of /proc/PID/stat; the kernel's interface fixes it on
// every architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// cpu returns how long the process has run on a processor.
func (p *process) cpu() (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return parseCPU(data)
}

// parseCPU adds user and system time, fields 14 and 15 of proc_pid_stat(5).
// The second field may hold spaces and ends with the last parenthesis.
func parseCPU(stat []byte) (time.Duration, error) {
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("process statistics have %d fields", len(fields))
	}
	var sum time.Duration
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("process statistics: %w", err)
		}
		sum += time.Duration(ticks) * clockTick
	}
	return sum, nil
}

// peakMemory returns the largest resident size so far, in bytes.
func (p *process) peakMemory() (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return parsePeak(string(data))
}

// parsePeak reads VmHWM of proc_pid_status(5).
func parsePeak(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process status has no VmHWM")
}

// startCluster starts a fresh API server, or a whole weft-server, in dir and
// returns when its kubeconfig is there.
func startCluster(ctx context.Context, dir, profile, part string) (*process, string, error) {
	p, err := start(dir, profile, part, "-state-dir", dir)
	if err != nil {
		return nil, "", err
	}
	kubeconfig := filepath.Join(dir, "admin.kubeconfig")
	for {
		if _, err := os.Stat(kubeconfig); err == nil {
			return p, kubeconfig, nil
		}
		if err := p.alive(); err != nil {
			return nil, "", err
		}
		select {
		case <-ctx.Done():
			p.stop()
			return nil, "", ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
