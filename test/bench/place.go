package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// place is where a process of the benchmark runs.
type place struct {
	netns netns.NsHandle
	// cgroup is a directory of the cgroup2 hierarchy; "" stays in this one's.
	cgroup string
}

// command is what to run.
type command struct {
	path           string
	args, env      []string // env is added to this process's
	nice           int
	stdout, stderr *os.File // neither is nil
}

// process is a child; done delivers its end once.
type process struct {
	cmd  *exec.Cmd
	done chan error
}

// start starts c at p. The child dies with this process, and with ctx.
func (p place) start(ctx context.Context, c command) (*process, error) {
	cmd := exec.CommandContext(ctx, c.path, c.args...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Stdout, cmd.Stderr = c.stdout, c.stderr
	started := make(chan error)
	child := &process{cmd: cmd, done: make(chan error, 1)}
	go func() {
		// Never unlocked: Pdeathsig is sent when the thread that started the
		// child ends, and the thread must not carry its namespace elsewhere.
		runtime.LockOSThread()
		err := p.enterAndStart(cmd, c.nice)
		started <- err
		if err == nil {
			child.done <- cmd.Wait()
		}
	}()
	return child, <-started
}

// enterAndStart changes the calling thread, whose child inherits it all.
func (p place) enterAndStart(cmd *exec.Cmd, nice int) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.cgroup != "" {
		dir, err := os.Open(p.cgroup)
		if err != nil {
			return err
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	if err := netns.Set(p.netns); err != nil {
		return err
	}
	// Without CAP_SYS_NICE it goes on as it is.
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil && !errors.Is(err, unix.EACCES) {
		return err
	}
	return cmd.Start()
}

// stop kills the child and waits for its end.
func (c *process) stop() {
	// Either it is gone already, or it goes now.
	_ = c.cmd.Process.Kill()
	<-c.done
}

// newNetns makes a network namespace without a name.
func newNetns() (netns.NsHandle, error) {
	ns := netns.None()
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns, err = netns.Get()
		return err
	})
	return ns, err
}

// inside runs f on a thread in the namespace.
func inside(ns netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which ends with f.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		result <- f()
	}()
	return <-result
}
