package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// guard is a process that removes the cluster as soon as this one ends, for
// whatever reason: it holds the far end of a pipe. Everything else needs no
// guard: child processes die with this one, and network namespaces that have
// no name go with the last process in them.
type guard struct {
	pipe io.Closer
	cmd  *exec.Cmd
}

// startGuard refuses a cluster that exists: it is somebody's.
func startGuard(o options) (*guard, error) {
	if _, err := os.Stat("/var/lib/weft/" + o.name); err == nil {
		return nil, fmt.Errorf("cluster %s exists; remove it with: %s down --name %s", o.name, o.weft(), o.name)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "cleanup", o.weft(), o.name)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a terminal's signals do not reach it
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &guard{pipe: pipe, cmd: cmd}, cmd.Start()
}

// end has the cluster removed and waits for it.
func (g *guard) end() error {
	return errors.Join(g.pipe.Close(), g.cmd.Wait())
}

// cleanupMain is the guard: cleanup WEFT NAME.
func cleanupMain(args []string) error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	out, err := exec.Command(args[0], "down", "--name", args[1]).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove cluster %s: %w\n%s", args[1], err, out)
	}
	return nil
}
