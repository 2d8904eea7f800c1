package node

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	nodeutil "k8s.io/component-helpers/node/util"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// healthy is a machine without a problem.
func healthy() Facts {
	return Facts{
		Config: Config{
			NodeName: "n1", Hostname: "n1", Port: 10250, MaxPods: 110, Version: "0.1",
			Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, Thresholds: Thresholds{}.orDefault(),
		},
		Machine: MachineFacts{
			CPUs: 4, MemoryBytes: 8 << 30, MemoryAvailableBytes: 4 << 30, DiskBytes: 100 << 30, DiskAvailableBytes: 50 << 30,
			Inodes: 1000, InodesFree: 500, PIDs: 100, PIDsMax: 32768, Architecture: "amd64",
		},
		Runtime: RuntimeFacts{Name: "containerd", Version: "2.4.2"},
	}
}

func TestConditions(t *testing.T) {
	type step struct {
		after  time.Duration // since the step before
		change func(*Facts)
		want   string // "Ready@90s" = Ready is true since 90 s; only true conditions
	}
	broken := func(d time.Duration) func(*Facts) {
		return func(f *Facts) { f.Problem, f.ProblemFor = "runtime is down", d }
	}
	for name, steps := range map[string][]step{
		"a healthy node is ready":                  {{0, nil, "Ready@0s"}},
		"nothing moves while nothing changes":      {{0, nil, "Ready@0s"}, {time.Hour, nil, "Ready@0s"}},
		"a new node with a problem is not ready":   {{0, broken(0), ""}, {time.Second, nil, "Ready@1s"}},
		"a ready node survives a short problem":    {{0, nil, "Ready@0s"}, {time.Minute, broken(0), "Ready@0s"}, {29 * time.Second, broken(29 * time.Second), "Ready@0s"}},
		"a ready node does not survive a long one": {{0, nil, "Ready@0s"}, {time.Minute, broken(30 * time.Second), ""}, {time.Minute, nil, "Ready@2m0s"}},
		"little memory is memory pressure":         {{0, func(f *Facts) { f.Machine.MemoryAvailableBytes = 99 << 20 }, "MemoryPressure@0s Ready@0s"}},
		"little disk space is disk pressure":       {{0, func(f *Facts) { f.Machine.DiskAvailableBytes = 9 << 30 }, "DiskPressure@0s Ready@0s"}},
		"few inodes are disk pressure":             {{0, func(f *Facts) { f.Machine.InodesFree = 49 }, "DiskPressure@0s Ready@0s"}},
		"few process numbers are PID pressure":     {{0, func(f *Facts) { f.Machine.PIDs = 32000 }, "PIDPressure@0s Ready@0s"}},
		"an unknown file system is not pressure":   {{0, func(f *Facts) { f.Machine.DiskBytes, f.Machine.DiskAvailableBytes = 0, 0 }, "Ready@0s"}},
		"pressure holds for five minutes after it": {{0, func(f *Facts) { f.Machine.InodesFree = 0 }, "DiskPressure@0s Ready@0s"}, {299 * time.Second, nil, "DiskPressure@0s Ready@0s"}, {time.Second, nil, "Ready@0s"}},
		"pressure that is seen again holds anew":   {{0, func(f *Facts) { f.Machine.InodesFree = 0 }, "DiskPressure@0s Ready@0s"}, {200 * time.Second, func(f *Facts) { f.Machine.InodesFree = 0 }, "DiskPressure@0s Ready@0s"}, {299 * time.Second, nil, "DiskPressure@0s Ready@0s"}},
		"pressure that begins later begins then":   {{0, nil, "Ready@0s"}, {time.Minute, func(f *Facts) { f.Machine.PIDs = 32700 }, "PIDPressure@1m0s Ready@0s"}},
	} {
		t.Run(name, func(t *testing.T) {
			var status corev1.NodeStatus
			now := start
			for i, step := range steps {
				now = now.Add(step.after)
				facts := healthy()
				if step.change != nil {
					step.change(&facts)
				}
				status = compute(facts, status, now)
				if got := trueConditions(status); got != step.want {
					t.Errorf("step %d: %q, want %q", i, got, step.want)
				}
			}
		})
	}
}

func trueConditions(s corev1.NodeStatus) string {
	var list []string
	for _, c := range s.Conditions {
		if c.Status == corev1.ConditionTrue {
			list = append(list, fmt.Sprintf("%s@%s", c.Type, c.LastTransitionTime.Sub(start)))
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func TestConditionsOfOthersStay(t *testing.T) {
	old := corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: "KernelDeadlock", Status: corev1.ConditionFalse}}}
	s := compute(healthy(), old, start)
	if _, c := nodeutil.GetNodeCondition(&s, "KernelDeadlock"); c == nil {
		t.Error("a condition of another component was removed")
	}
}

func TestUnknownReadyOfLifecycleControllerIsCorrected(t *testing.T) {
	old := corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, LastTransitionTime: metav1.NewTime(start)}}}
	if got := trueConditions(compute(healthy(), old, start.Add(time.Minute))); got != "Ready@1m0s" {
		t.Errorf("%q", got)
	}
}

func TestResources(t *testing.T) {
	f := healthy()
	f.Machine.HugePages = map[string]int64{"2Mi": 1 << 30, "1Gi": 0}
	f.Config.Capacity = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}
	f.Config.Reserved = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("924Mi")}
	others := corev1.ResourceList{"example.com/dongle": resource.MustParse("4"), "hugepages-64Ki": resource.MustParse("1Gi")}
	s := compute(f, corev1.NodeStatus{Capacity: others}, start)
	for name, want := range map[corev1.ResourceName][2]string{
		corev1.ResourceCPU:              {"2", "1750m"},
		corev1.ResourceMemory:           {"8Gi", "6Gi"}, // less reserved, threshold and huge pages
		corev1.ResourceEphemeralStorage: {"100Gi", "90Gi"},
		corev1.ResourcePods:             {"110", "110"},
		"hugepages-2Mi":                 {"1Gi", "1Gi"},
		"hugepages-1Gi":                 {"0", "0"},
		"hugepages-64Ki":                {"0", "0"}, // not there any more
		"example.com/dongle":            {"4", "4"}, // somebody else's
	} {
		have := [2]string{quantity(s.Capacity, name), quantity(s.Allocatable, name)}
		if have != want {
			t.Errorf("%s: capacity and allocatable are %v, want %v", name, have, want)
		}
	}
}

func quantity(list corev1.ResourceList, name corev1.ResourceName) string {
	q := list[name]
	return q.String()
}

func TestKubeletVersionParsesAsKubernetes(t *testing.T) {
	for _, own := range []string{"", "0.1", "0.1.0-3-gabcdef+dirty", "(devel)"} {
		f := healthy()
		f.Config.Version = own
		text := compute(f, corev1.NodeStatus{}, start).NodeInfo.KubeletVersion
		v, err := version.ParseSemantic(text)
		if err != nil || v.Major() != 1 || v.Minor() != 37 {
			t.Errorf("version %q of Weft gives %q: %v", own, text, err)
		}
	}
}

func TestAddressesListEveryNodeIPAndTheHostname(t *testing.T) {
	got := fmt.Sprint(compute(healthy(), corev1.NodeStatus{}, start).Addresses)
	if want := "[{InternalIP 192.0.2.1} {InternalIP 2001:db8::1} {Hostname n1}]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestImagesAreTheLargestFewWithFewNames(t *testing.T) {
	f := healthy()
	for i := range 60 {
		f.Images = append(f.Images, corev1.ContainerImage{Names: make([]string, 9), SizeBytes: int64(i)})
	}
	images := compute(f, corev1.NodeStatus{}, start).Images
	if len(images) != maxImages || images[0].SizeBytes != 59 || len(images[0].Names) != maxImageNames {
		t.Errorf("%d images, first %v", len(images), images[0])
	}
}

func TestSilentRuntimeKeepsWhatItSaidBeforeARestart(t *testing.T) {
	before := compute(healthy(), corev1.NodeStatus{}, start)
	f := healthy()
	f.Runtime = RuntimeFacts{}
	if got := compute(f, before, start).NodeInfo.ContainerRuntimeVersion; got != "containerd://2.4.2" {
		t.Errorf("runtime version %q", got)
	}
}

func TestLabelsThatNodeRestrictionRefusesAreRefusedAtOnce(t *testing.T) {
	for key, ok := range map[string]bool{
		"tier": true, "example.com/rack": true, "topology.kubernetes.io/zone": true, "node.kubernetes.io/instance-type": true,
		"node-role.kubernetes.io/control-plane": false, "node-restriction.kubernetes.io/x": false, "kubernetes.io/x": false, "bad key": false,
	} {
		if err := checkLabel(key, "v"); (err == nil) != ok {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestMachineIsReadFromProcAndSys(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"proc/meminfo":                   "MemTotal:       8388608 kB\nMemAvailable:    1024 kB\nSwapTotal:  0 kB\nHugePages_Total:       3\n",
		"proc/loadavg":                   "0.00 0.01 0.05 1/234 5678\n",
		"proc/sys/kernel/pid_max":        "4194304\n",
		"proc/sys/kernel/threads-max":    "1000\n",
		"proc/sys/kernel/osrelease":      "6.18.0\n",
		"proc/sys/kernel/random/boot_id": "b007\n",
		"etc/machine-id":                 "1d\n",
		"etc/os-release":                 "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages":    "3\n",
		"sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": "0\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := machine{root: root, stateDir: root}.measure()
	got.CPUs, got.Architecture = 1, "amd64"
	if got.DiskBytes == 0 || got.DiskAvailableBytes > got.DiskBytes {
		t.Errorf("disk: %d of %d bytes available", got.DiskAvailableBytes, got.DiskBytes)
	}
	got.DiskBytes, got.DiskAvailableBytes, got.Inodes, got.InodesFree = 0, 0, 0, 0
	want := "{1 8589934592 1048576 0 0 0 0 234 1000 map[1Gi:0 2Mi:6291456] 0 amd64 Debian GNU/Linux 12 (bookworm) 6.18.0 1d 1d b007}"
	if fmt.Sprint(got) != want {
		t.Errorf("%v\nwant %s", got, want)
	}
}
