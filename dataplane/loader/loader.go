// Package loader puts maps, programs and links into the kernel and keeps
// them there by pins.
//
//	PinDir/v1/maps/<map>                 shared by all programs
//	PinDir/v1/programs/<digest>/<name>   one directory per build
//	PinDir/v1/links/<name>               tcx and cgroup attachments
//
// A process that opens the same directory with the same build loads nothing:
// it takes over what is pinned. Another build's programs replace the old ones
// by link update, atomically per hook.
package loader

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft.dev/weft/dataplane/bpfobj"
)

// Layout is the version of the pinned maps' layout. Raise it with every
// change to bpf/lib/maps.h or to a struct that a map holds.
const Layout = 1

// Settings are constants of the programs, fixed when they are loaded.
type Settings struct {
	// NodeNetns is the cookie of the node's network namespace (the socket
	// option SO_NETNS_COOKIE).
	NodeNetns uint64
}

// objects are the compiled files; every program belongs to exactly one.
var objects = []func() (*ebpf.CollectionSpec, error){
	bpfobj.LoadPod, bpfobj.LoadHost, bpfobj.LoadOverlay, bpfobj.LoadSocket,
}

// Loader holds what is loaded. It is not safe for concurrent use.
type Loader struct {
	dir      string // PinDir/v<Layout>
	digest   string
	maps     map[string]*ebpf.Map
	programs map[string]*ebpf.Program
	// Writes counts programs and maps loaded and links changed.
	Writes int
}

// Open takes over what is pinned below pinDir and loads what is missing.
// pinDir is created if need be; it must be on a bpffs.
func Open(pinDir string, settings Settings) (*Loader, error) {
	l := &Loader{
		dir:      versionDir(pinDir),
		digest:   digest(settings),
		maps:     map[string]*ebpf.Map{},
		programs: map[string]*ebpf.Program{},
	}
	if err := l.open(pinDir, settings); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func versionDir(pinDir string) string {
	return filepath.Join(pinDir, fmt.Sprintf("v%d", Layout))
}

func digest(settings Settings) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%+v", settings)
	return fmt.Sprintf("%s-%08x", bpfobj.Digest(), h.Sum32())
}

func (l *Loader) open(pinDir string, settings Settings) error {
	if err := os.MkdirAll(pinDir, 0o700); err != nil {
		return fmt.Errorf("create pin directory: %w", err)
	}
	if err := checkBPFFS(pinDir); err != nil {
		return err
	}
	for _, dir := range []string{l.mapDir(), l.programDir(), l.linkDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create pin directory: %w", err)
		}
	}
	if err := l.openMaps(); err != nil {
		return err
	}
	for _, load := range objects {
		spec, err := load()
		if err != nil {
			return fmt.Errorf("parse compiled BPF object: %w", err)
		}
		if err := l.openPrograms(spec, settings); err != nil {
			return err
		}
	}
	return nil
}

func (l *Loader) mapDir() string     { return filepath.Join(l.dir, "maps") }
func (l *Loader) programDir() string { return filepath.Join(l.dir, "programs", l.digest) }
func (l *Loader) linkDir() string    { return filepath.Join(l.dir, "links") }

func checkBPFFS(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at pin directory %s: %w", dir, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("pin directory %s is not on a BPF file system: mount one (mount -t bpf bpf /sys/fs/bpf)", dir)
	}
	return nil
}

// openMaps takes over or creates every map of maps.c.
func (l *Loader) openMaps() error {
	spec, err := bpfobj.LoadMaps()
	if err != nil {
		return fmt.Errorf("parse compiled BPF object: %w", err)
	}
	for name, m := range spec.Maps {
		if name[0] == '.' {
			continue // constants of the object itself
		}
		pinned := filepath.Join(l.mapDir(), name)
		_, statErr := os.Stat(pinned)
		m.Pinning = ebpf.PinByName
		l.maps[name], err = ebpf.NewMapWithOptions(m, ebpf.MapOptions{PinPath: l.mapDir()})
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			return fmt.Errorf("pinned map %s has another layout than this build's version %d: %w", pinned, Layout, err)
		}
		if err != nil {
			return fmt.Errorf("create map %s: %w", name, err)
		}
		if statErr != nil {
			l.Writes++
		}
	}
	return nil
}

// openPrograms takes over the programs of one object if all are pinned, and
// otherwise loads and pins them all.
func (l *Loader) openPrograms(spec *ebpf.CollectionSpec, settings Settings) error {
	pinned, err := l.pinnedPrograms(spec)
	if err != nil {
		return err
	}
	if pinned {
		return nil
	}
	if v, ok := spec.Variables["node_netns"]; ok {
		if err := v.Set(settings.NodeNetns); err != nil {
			return fmt.Errorf("set node_netns: %w", err)
		}
	}
	replace := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if m, ok := l.maps[name]; ok {
			replace[name] = m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return fmt.Errorf("load BPF programs: %w", err)
	}
	defer coll.Close()
	for name := range spec.Programs {
		prog := coll.DetachProgram(name)
		l.programs[name] = prog
		path := filepath.Join(l.programDir(), name)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("replace pin: %w", err)
		}
		if err := prog.Pin(path); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
		l.Writes++
	}
	return nil
}

func (l *Loader) pinnedPrograms(spec *ebpf.CollectionSpec) (bool, error) {
	found := map[string]*ebpf.Program{}
	for name := range spec.Programs {
		prog, err := ebpf.LoadPinnedProgram(filepath.Join(l.programDir(), name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			for _, p := range found {
				p.Close()
			}
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("take over pinned program %s: %w", name, err)
		}
		found[name] = prog
	}
	for name, prog := range found {
		l.programs[name] = prog
	}
	return true, nil
}

// Map returns a map of bpf/lib/maps.h; the Loader closes it.
func (l *Loader) Map(name string) *ebpf.Map { return l.maps[name] }

// Program returns a program by the name of its C function; the Loader closes
// it.
func (l *Loader) Program(name string) *ebpf.Program { return l.programs[name] }

// PruneOld unpins what other builds and other layout versions left. Call it
// when every link runs this build's programs.
func (l *Loader) PruneOld() error {
	var errs []error
	for _, dir := range []string{filepath.Dir(l.dir), filepath.Join(l.dir, "programs")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if path == l.dir || path == l.programDir() {
				continue
			}
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}

// Close gives up the file descriptors and leaves the pins.
func (l *Loader) Close() error {
	var errs []error
	for _, m := range l.maps {
		errs = append(errs, m.Close())
	}
	for _, p := range l.programs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// Remove unpins everything below pinDir: links detach, programs and maps go
// with their last user.
func Remove(pinDir string) error {
	if _, err := os.Stat(pinDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := checkBPFFS(pinDir); err != nil {
		return err
	}
	return os.RemoveAll(pinDir)
}
