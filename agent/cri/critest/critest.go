// Package critest starts a real container runtime for tests: a private
// containerd in a directory of its own that leaves nothing behind.
package critest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"weft.dev/weft/agent/containerd"
	"weft.dev/weft/agent/cri"
)

// Busybox is the image that tests run; Start imports it.
const Busybox = "docker.io/library/busybox:test"

// busyboxProgram is Debian's busybox-static.
const busyboxProgram = "/bin/busybox"

// Runtime is a containerd that belongs to one test.
type Runtime struct {
	*cri.Client
	// Dir is the test's directory, also for its pods.
	Dir string
	// CgroupParent is a cgroup that is removed with all below it.
	CgroupParent string

	t      *testing.T
	config containerd.Config
	daemon *exec.Cmd
}

// Start starts containerd and imports the images that tests need. It skips
// the test without root or without the programs, which are looked for in
// WEFT_BIN or the repository's bin directory.
func Start(t *testing.T) *Runtime {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to run containers")
	}
	bin := binDir(t)
	// Not t.TempDir: its names are too long for sockets.
	dir, err := os.MkdirTemp("", "wr")
	if err != nil {
		t.Fatal(err)
	}
	r := &Runtime{
		Dir: dir, CgroupParent: "/weft-test-" + strings.ToLower(rand.Text()[:8]), t: t,
		config: containerd.Config{StateDir: dir + "/state", RunDir: dir + "/run", BinDir: bin,
			CNIConfDir: dir + "/cni", RegistryDir: dir + "/certs"},
	}
	t.Cleanup(r.cleanUp)
	if err := r.config.Write(); err != nil {
		t.Fatal(err)
	}
	r.StartDaemon()
	r.Client, err = cri.Dial(r.config.Socket(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := r.Version(ctx); err != nil {
		t.Fatalf("containerd does not answer: %v", err)
	}
	pause := busyboxImage(t, "sleep", "2147483647")
	r.Import(BusyboxArchive(t, Busybox))
	r.Import(ociArchive(t, containerd.SandboxImage, pause))
	return r
}

// Import imports an image archive and returns the names in it.
func (r *Runtime) Import(archive io.Reader) []string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	names, err := cri.ImportImages(ctx, r.Conn(), archive)
	if err != nil {
		r.t.Fatal(err)
	}
	return names
}

// BusyboxArchive is the archive of an image of busybox.
func BusyboxArchive(t *testing.T, ref string) io.Reader {
	t.Helper()
	return dockerArchive(t, ref, busyboxImage(t, "sh"))
}

// BusyboxImage is an image of busybox that runs a command, for registries.
func BusyboxImage(t *testing.T, command ...string) v1.Image {
	t.Helper()
	return busyboxImage(t, command...)
}

func binDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("WEFT_BIN")
	for up := "."; dir == "" && up != "./../../../.."; up += "/.." {
		if _, err := os.Stat(up + "/bin/containerd"); err == nil {
			dir = up + "/bin"
		}
	}
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "runc"} {
		if _, err := os.Stat(filepath.Join(dir, program)); dir == "" || err != nil {
			t.Skipf("needs %s: run make build, or set WEFT_BIN", program)
		}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// StartDaemon starts containerd, again after KillDaemon.
func (r *Runtime) StartDaemon() {
	r.t.Helper()
	log, err := os.Create(filepath.Join(r.Dir, "containerd.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	argv := r.config.Argv()
	r.daemon = exec.Command(argv[0], argv[1:]...)
	r.daemon.Stdout, r.daemon.Stderr = log, log
	if err := r.daemon.Start(); err != nil {
		r.t.Fatal(err)
	}
}

// KillDaemon ends containerd at once; containers keep running.
func (r *Runtime) KillDaemon() {
	_ = r.daemon.Process.Kill()
	_ = r.daemon.Wait()
}

// cleanUp removes pods, containerd, mounts, cgroups and files.
func (r *Runtime) cleanUp() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if r.Client != nil {
		sandboxes, err := r.Sandboxes(ctx, nil)
		if err != nil {
			r.t.Errorf("list sandboxes: %v", err)
		}
		for _, s := range sandboxes {
			_ = r.StopPodSandbox(ctx, s.Id)
			if err := r.RemovePodSandbox(ctx, s.Id); err != nil {
				r.t.Errorf("remove sandbox: %v", err)
			}
		}
		_ = r.Close()
	}
	if r.daemon != nil {
		_ = r.daemon.Process.Signal(syscall.SIGTERM)
		_ = r.daemon.Wait()
	}
	if r.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(r.Dir, "containerd.log"))
		r.t.Logf("end of containerd's log:\n%s", log[max(0, len(log)-4000):])
	}
	r.unmountAll()
	r.removeCgroups()
	if err := os.RemoveAll(r.Dir); err != nil {
		r.t.Error(err)
	}
}

func (r *Runtime) unmountAll() {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		r.t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], r.Dir+"/") {
			_ = unix.Unmount(fields[1], unix.MNT_DETACH)
		}
	}
}

// removeCgroups removes the test's cgroup in every hierarchy, depth first.
func (r *Runtime) removeCgroups() {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + r.CgroupParent)
	for _, root := range append(roots, "/sys/fs/cgroup"+r.CgroupParent) {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = os.Remove(dirs[i])
		}
	}
}

// busyboxImage is an image of busybox with a link per applet.
func busyboxImage(t *testing.T, command ...string) v1.Image {
	t.Helper()
	program, err := os.ReadFile(busyboxProgram)
	if err != nil {
		t.Skipf("needs busybox-static: %v", err)
	}
	applets, err := exec.Command(busyboxProgram, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	files := tar.NewWriter(&layer)
	write := func(header tar.Header, content []byte) {
		header.Size = int64(len(content))
		if err := files.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "dev/", "proc/", "sys/"} {
		write(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	write(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	write(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/:/bin/sh\n"))
	write(tar.Header{Name: "bin/busybox", Mode: 0o755}, program)
	for applet := range strings.Lines(string(applets)) {
		if applet = strings.TrimSpace(applet); applet != "busybox" {
			write(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
		}
	}
	if err := files.Close(); err != nil {
		t.Fatal(err)
	}
	return imageOf(t, layer.Bytes(), command)
}

func imageOf(t *testing.T, layer []byte, command []string) v1.Image {
	t.Helper()
	packed, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, packed)
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.Config(image, v1.Config{Cmd: command, Env: []string{"PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// dockerArchive is what docker save would write.
func dockerArchive(t *testing.T, ref string, image v1.Image) io.Reader {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tarball.Write(tag, image, &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

// ociArchive is a tar of an OCI image layout.
func ociArchive(t *testing.T, ref string, image v1.Image) io.Reader {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendImage(image, layout.WithAnnotations(map[string]string{"io.containerd.image.name": ref})); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	files := tar.NewWriter(&out)
	if err := files.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := files.Close(); err != nil {
		t.Fatal(fmt.Errorf("write layout: %w", err))
	}
	return &out
}
