// Package supervise keeps one local node's programs running, as systemd does
// on a real node: it starts them, starts them again with back-off when they
// end, and stops them in reverse order when asked to.
//
//	weft up ──exec──► weft supervise SPEC ──► containerd, weft-server, weft agent
//
// A supervisor that is killed leaves its programs running; the next one
// finds them by their pid files and takes them over without a restart.
package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Spec is what one supervisor runs.
type Spec struct {
	// RunDir holds a pid file per program, LogDir a log file per program.
	RunDir string `json:"runDir"`
	LogDir string `json:"logDir"`
	// Programs start in this order and stop in reverse.
	Programs []Program `json:"programs"`
}

// Program is one process to keep running.
type Program struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`
	// StopAfter bounds a graceful stop; then the program is killed.
	StopAfter time.Duration `json:"stopAfter"`
}

// Back-off between restarts of a program; it starts again from the least
// after a run longer than steadyRun.
const (
	leastDelay = 200 * time.Millisecond
	mostDelay  = 10 * time.Second
	steadyRun  = 30 * time.Second
)

// Load reads a Spec from a JSON file.
func Load(path string) (Spec, error) {
	var spec Spec
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &spec)
	}
	if err != nil {
		return spec, fmt.Errorf("read supervisor specification: %w", err)
	}
	if len(spec.Programs) == 0 {
		return spec, fmt.Errorf("supervisor specification %s: programs is empty", path)
	}
	return spec, nil
}

// Run keeps the programs running until ctx is done, then stops them in
// reverse order and returns nil. A second supervisor of the same RunDir is
// refused.
func Run(ctx context.Context, spec Spec) error {
	for _, dir := range []string{spec.RunDir, spec.LogDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	own := filepath.Join(spec.RunDir, "supervisor.pid")
	if pid, err := running(own); err == nil {
		return fmt.Errorf("a supervisor runs already as process %d", pid)
	}
	if err := record(own, os.Getpid()); err != nil {
		return fmt.Errorf("write %s: %w", own, err)
	}
	defer os.Remove(own)
	stops := make([]func(), 0, len(spec.Programs))
	for _, program := range spec.Programs {
		stops = append(stops, keep(spec, program))
	}
	<-ctx.Done()
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i]()
	}
	return nil
}

// keep runs one program in the background; the function it returns stops it
// and waits.
func keep(spec Spec, program Program) func() {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		delay := leastDelay
		for ctx.Err() == nil {
			began := time.Now()
			err := runOnce(ctx, spec, program)
			if ctx.Err() != nil {
				return
			}
			if time.Since(began) > steadyRun {
				delay = leastDelay
			}
			slog.Warn("program ended, starting it again", "program", program.Name, "error", err, "delay", delay)
			select {
			case <-ctx.Done():
			case <-time.After(delay):
			}
			delay = min(2*delay, mostDelay)
		}
	})
	return func() { cancel(); done.Wait() }
}

// runOnce takes over the program if it runs already, else starts it, and
// returns when it has ended or ctx is done and it was stopped.
func runOnce(ctx context.Context, spec Spec, program Program) error {
	pidFile := filepath.Join(spec.RunDir, program.Name+".pid")
	process, err := adopt(pidFile)
	if errors.Is(err, errNotRunning) {
		process, err = start(spec, program, pidFile)
	}
	if err != nil {
		return err
	}
	defer process.close()
	slog.Info("program runs", "program", program.Name, "pid", process.pid)
	select {
	case <-process.ended:
		os.Remove(pidFile)
		return process.err
	case <-ctx.Done():
	}
	process.stop(program.StopAfter)
	os.Remove(pidFile)
	return nil
}

func start(spec Spec, program Program, pidFile string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(spec.LogDir, program.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program.Argv[0], program.Argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program.Name, err)
	}
	process, err := open(cmd.Process.Pid)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	go func() {
		process.err = cmd.Wait()
		close(process.ended)
	}()
	if err := record(pidFile, process.pid); err != nil {
		slog.Error("pid file not written; a later supervisor cannot take this program over", "program", program.Name, "error", err)
	}
	return process, nil
}
