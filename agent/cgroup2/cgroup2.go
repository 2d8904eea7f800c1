// Package cgroup2 finds the cgroup2 hierarchy of this machine.
package cgroup2

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Root is where the cgroup2 hierarchy is mounted: below /sys/fs/cgroup on
// hybrid hosts, at it on others (the two places runc knows). The error says
// how to mount one.
func Root() (string, error) {
	for _, path := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var fs unix.Statfs_t
		if unix.Statfs(path, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return path, nil
		}
	}
	return "", errors.New("no cgroup2 hierarchy at /sys/fs/cgroup or /sys/fs/cgroup/unified; mount one: mount -t cgroup2 none /sys/fs/cgroup")
}
