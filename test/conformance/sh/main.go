// Command sh is /bin/sh of the images that upstream's tests run. It is
// busybox's shell, whose messages specs compare, unless a variable of the
// environment has a name that no shell could assign, such as data-1: the
// busybox of Debian 12 would drop it, and specs expect to find it, so then it
// is bash.
package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
)

var assignable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

func main() {
	shell := "/bin/busybox"
	for _, variable := range os.Environ() {
		if !assignable.MatchString(variable) && strings.Contains(variable, "=") {
			shell = "/usr/bin/bash"
		}
	}
	args := append([]string{"/bin/sh"}, os.Args[1:]...) // busybox and bash go by this name
	err := syscall.Exec(shell, args, os.Environ())
	fmt.Fprintf(os.Stderr, "sh: %s: %v\n", shell, err)
	os.Exit(127)
}
