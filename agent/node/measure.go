package node

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtimeTimeout bounds each question to the runtime.
const runtimeTimeout = 5 * time.Second

// Runtime is what is asked of the container runtime, a part of
// runtimeapi.RuntimeServiceClient.
type Runtime interface {
	Version(ctx context.Context, in *runtimeapi.VersionRequest, opts ...grpc.CallOption) (*runtimeapi.VersionResponse, error)
	Status(ctx context.Context, in *runtimeapi.StatusRequest, opts ...grpc.CallOption) (*runtimeapi.StatusResponse, error)
}

// Images is a part of runtimeapi.ImageServiceClient.
type Images interface {
	ListImages(ctx context.Context, in *runtimeapi.ListImagesRequest, opts ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error)
}

// measure collects Facts. What cannot be measured keeps its last value or is
// left out; the log says so.
func (n *Node) measure(ctx context.Context, now time.Time) Facts {
	f := Facts{Config: n.cfg, Machine: n.machine.measure()}
	f.Problem = n.askRuntime(ctx)
	f.Runtime = n.runtime
	f.Images = n.listImages(ctx)
	if f.Problem == "" && n.cfg.Ready != nil {
		if err := n.cfg.Ready(); err != nil {
			f.Problem = err.Error()
		}
	}
	switch {
	case f.Problem == "":
		n.problemSince = time.Time{}
	case n.problemSince.IsZero():
		n.problemSince = now
	default:
		f.ProblemFor = now.Sub(n.problemSince)
	}
	return f
}

// askRuntime remembers what the runtime answers and returns what is wrong with
// it. After it stops answering the last answer stays.
func (n *Node) askRuntime(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, runtimeTimeout)
	defer cancel()
	version, err := n.cfg.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
	var status *runtimeapi.StatusResponse
	if err == nil {
		status, err = n.cfg.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	}
	if err != nil {
		n.log.Debug("container runtime does not answer", "error", err)
		return "the container runtime does not answer"
	}
	n.runtime = RuntimeFacts{Name: version.RuntimeName, Version: version.RuntimeVersion, Handlers: handlers(status.RuntimeHandlers)}
	if status.Features != nil {
		n.runtime.Features = &corev1.NodeFeatures{SupplementalGroupsPolicy: &status.Features.SupplementalGroupsPolicy}
	}
	return problem(status.Status)
}

// problem is the first runtime condition that is not true.
func problem(s *runtimeapi.RuntimeStatus) string {
	for _, kind := range []string{runtimeapi.RuntimeReady, runtimeapi.NetworkReady} {
		found := false
		for _, c := range s.GetConditions() {
			if c.Type != kind {
				continue
			}
			if found = true; !c.Status {
				return fmt.Sprintf("container runtime: %s is false: %s: %s", kind, c.Reason, c.Message)
			}
		}
		if !found {
			return fmt.Sprintf("container runtime: it does not report %s", kind)
		}
	}
	return ""
}

func handlers(list []*runtimeapi.RuntimeHandler) []corev1.NodeRuntimeHandler {
	var result []corev1.NodeRuntimeHandler
	for _, h := range list {
		handler := corev1.NodeRuntimeHandler{Name: h.Name}
		if h.Features != nil {
			handler.Features = &corev1.NodeRuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: &h.Features.RecursiveReadOnlyMounts,
				UserNamespaces:          &h.Features.UserNamespaces,
			}
		}
		result = append(result, handler)
	}
	return result
}

func (n *Node) listImages(ctx context.Context) []corev1.ContainerImage {
	ctx, cancel := context.WithTimeout(ctx, runtimeTimeout)
	defer cancel()
	response, err := n.cfg.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		if n.present != nil {
			return n.present.Status.Images
		}
		return nil
	}
	var list []corev1.ContainerImage
	for _, image := range response.Images {
		if names := append(image.RepoDigests, image.RepoTags...); len(names) > 0 {
			list = append(list, corev1.ContainerImage{Names: names, SizeBytes: int64(image.Size)})
		}
	}
	return list
}

// machine reads files below root, "/" except in tests.
type machine struct {
	root     string
	stateDir string
}

func (m machine) measure() MachineFacts {
	memory := m.meminfo()
	f := MachineFacts{
		CPUs:                 int64(runtime.NumCPU()),
		MemoryBytes:          memory["MemTotal"],
		MemoryAvailableBytes: memory["MemAvailable"],
		SwapBytes:            memory["SwapTotal"],
		HugePages:            m.hugePages(),
		Architecture:         runtime.GOARCH,
		OSImage:              m.osImage(),
		KernelVersion:        m.line("proc/sys/kernel/osrelease"),
		MachineID:            m.line("etc/machine-id"),
		SystemUUID:           m.line("sys/class/dmi/id/product_uuid"),
		BootID:               m.line("proc/sys/kernel/random/boot_id"),
		PIDsMax:              m.number("proc/sys/kernel/pid_max"),
		PIDs:                 m.processes(),
	}
	if f.SystemUUID == "" {
		f.SystemUUID = f.MachineID
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(m.stateDir, &fs); err == nil {
		f.DiskBytes = int64(fs.Blocks) * fs.Bsize
		f.DiskAvailableBytes = int64(fs.Bavail) * fs.Bsize
		f.Inodes, f.InodesFree = int64(fs.Files), int64(fs.Ffree)
	}
	if threads := m.number("proc/sys/kernel/threads-max"); threads > 0 && threads < f.PIDsMax {
		f.PIDsMax = threads
	}
	return f
}

// line is the first line of a file, "" if it cannot be read.
func (m machine) line(name string) string {
	data, err := os.ReadFile(filepath.Join(m.root, name))
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(first)
}

func (m machine) number(name string) int64 {
	value, err := strconv.ParseInt(m.line(name), 10, 64)
	if err != nil {
		return 0
	}
	return value
}

// meminfo is /proc/meminfo in bytes, see proc(5).
func (m machine) meminfo() map[string]int64 {
	values := map[string]int64{}
	file, err := os.Open(filepath.Join(m.root, "proc/meminfo"))
	if err != nil {
		return values
	}
	defer file.Close()
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		name, rest, _ := strings.Cut(scanner.Text(), ":")
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err == nil {
			values[name] = kib << 10
		}
	}
	return values
}

// processes is the number of threads in the system: the second number of the
// fourth field of /proc/loadavg, see proc(5).
func (m machine) processes() int64 {
	fields := strings.Fields(m.line("proc/loadavg"))
	if len(fields) < 4 {
		return 0
	}
	_, total, _ := strings.Cut(fields[3], "/")
	count, err := strconv.ParseInt(total, 10, 64)
	if err != nil {
		return 0
	}
	return count
}

// hugePages is the reserved memory in bytes for each page size the kernel
// has, see https://docs.kernel.org/admin-guide/mm/hugetlbpage.html.
func (m machine) hugePages() map[string]int64 {
	pages := map[string]int64{}
	directories, err := filepath.Glob(filepath.Join(m.root, "sys/kernel/mm/hugepages/hugepages-*kB"))
	if err != nil {
		return pages
	}
	for _, directory := range directories {
		text := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(directory), "hugepages-"), "kB")
		kib, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			continue
		}
		count := m.number(filepath.Join("sys/kernel/mm/hugepages", filepath.Base(directory), "nr_hugepages"))
		pages[resource.NewQuantity(kib<<10, resource.BinarySI).String()] = count * kib << 10
	}
	return pages
}

// osImage is PRETTY_NAME of os-release(5).
func (m machine) osImage() string {
	data, err := os.ReadFile(filepath.Join(m.root, "etc/os-release"))
	if err != nil {
		return "Linux"
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return "Linux"
}
