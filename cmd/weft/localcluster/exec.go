package localcluster

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// Exec runs a command in the node's network namespace and cgroup, where
// Service addresses work, with this process's standard streams. It returns the
// command's exit code.
func (c *Cluster) Exec(node Node, argv []string) (exitCode int, err error) {
	cgroup, err := ensureSystemCgroup(node)
	if err != nil {
		return 0, err
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}

	// The terminal sends its signals to the command too; here they are left to it.
	signal.Ignore(os.Interrupt, syscall.SIGQUIT)
	if err := node.inNetns(cmd.Start); err != nil {
		return 0, err
	}
	err = cmd.Wait()
	var exited *exec.ExitError
	if errors.As(err, &exited) {
		if status, ok := exited.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exited.ExitCode(), nil
	}
	return 0, err
}
