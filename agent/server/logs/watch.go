package logs

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// watcher tells of changes in the directory of a log by inotify(7).
type watcher struct {
	file *os.File
	// wake holds at most one pending notice.
	wake chan struct{}
	// closed is set when a file open for writing was closed.
	closed atomic.Bool
}

// watch begins to watch the directory of path.
func watch(path string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch log: %w", err)
	}
	w := &watcher{file: os.NewFile(uintptr(fd), "inotify"), wake: make(chan struct{}, 1)}
	const mask = unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), mask); err != nil {
		w.close()
		return nil, fmt.Errorf("watch log directory %s: %w", filepath.Dir(path), err)
	}
	go w.run()
	return w, nil
}

// run ends when close is called.
func (w *watcher) run() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buffer)
		if err != nil {
			return
		}
		// struct inotify_event: wd, mask, cookie, len (32 bits each), name.
		for event := buffer[:n]; len(event) >= unix.SizeofInotifyEvent; {
			if binary.NativeEndian.Uint32(event[4:])&(unix.IN_CLOSE_WRITE|unix.IN_DELETE_SELF) != 0 {
				w.closed.Store(true)
			}
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(event[12:]))
			event = event[min(size, len(event)):]
		}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) close() { w.file.Close() }
