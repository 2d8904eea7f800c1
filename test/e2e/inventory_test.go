package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"
)

// inventory is what a cluster may leave on a machine: mounts, network
// namespaces, devices, routes, cgroups, pins, files and processes.
type inventory map[string]bool

func takeInventory(cluster string) inventory {
	found := inventory{}
	defer found.forgetOtherClusters(cluster)
	lines := func(kind string, argv ...string) {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			panic(fmt.Sprintf("%v: %v", argv, err)) // an inventory that misses something would find nothing left behind
		}
		for line := range strings.Lines(string(out)) {
			found[kind+" "+strings.TrimSpace(line)] = true
		}
	}
	lines("netns", "ip", "netns", "list")
	lines("device", "ip", "-o", "-br", "link")
	lines("route", "ip", "route", "show", "table", "all")
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		found["mount "+strings.Fields(line)[1]] = true
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/bpf", "/run/weft", "/var/lib/weft", "/run/netns"} {
		filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && (entry.IsDir() || root != "/sys/fs/cgroup") && path != root {
				found["path "+path] = true
			}
			return nil
		})
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range processes {
		text, _ := os.ReadFile(file)
		if argv := strings.ReplaceAll(string(text), "\x00", " "); strings.Contains(argv, bin) {
			found["process "+filepath.Dir(file)+" "+argv] = true
		}
	}
	return found
}

// forgetOtherClusters leaves out what belongs to clusters that run beside ours
// and change on their own.
func (found inventory) forgetOtherClusters(ours string) {
	others, _ := os.ReadDir("/var/lib/weft")
	for _, other := range others {
		if other.Name() == ours {
			continue
		}
		// One name may begin another: what follows tells.
		mark := regexp.MustCompile(`(/weft/|\bweft-|\bw-)` + regexp.QuoteMeta(other.Name()) + `($|[^a-z0-9-]|-node-[0-9]+|-[0-9]+\b)`)
		for thing := range found {
			if mark.MatchString(thing) {
				delete(found, thing)
			}
		}
	}
}

// leftovers reports what is there now and was not before. Namespaces and
// devices go a moment after the last process in them.
func (before inventory) leftovers(cluster string) error {
	var left []string
	for range 50 {
		left = nil
		for thing := range takeInventory(cluster) {
			if !before[thing] && !strings.Contains(thing, fmt.Sprintf("/proc/%d", os.Getpid())) {
				left = append(left, thing)
			}
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	sort.Strings(left)
	return errors.New("weft down left behind:\n  " + strings.Join(left, "\n  "))
}
