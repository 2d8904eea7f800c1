package logs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// parts are the files of one log, opened in the order of their content; the
// last one may still grow.
type parts struct {
	path    string // of the live file
	files   []*os.File
	reader  *bufio.Reader // of files[0]
	pending []byte        // the begin of a line whose end is not written yet
}

// rotated lists the earlier parts of the log at path, oldest first.
func rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("list log directory: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), filepath.Base(path)+".") {
			names = append(names, filepath.Join(filepath.Dir(path), entry.Name()))
		}
	}
	slices.Sort(names)
	return names, nil
}

// Remove deletes the log at path, its earlier parts included. It may be
// repeated; a log that is not there is not an error.
func Remove(path string) error {
	names, err := rotated(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range append(names, path) {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove log: %w", err))
		}
	}
	return errors.Join(errs...)
}

// openAll opens every part. A file that is renamed meanwhile is seen once:
// the live file is opened first, and left out if it turns up again.
func openAll(path string) ([]*os.File, error) {
	live, err := os.Open(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	names, err := rotated(path)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, name := range names {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed by retention
		}
		if err != nil {
			return nil, err
		}
		if live != nil && same(live, f) {
			live.Close()
			live = nil
		}
		files = append(files, f)
	}
	if live != nil {
		files = append(files, live)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("log %s: %w", path, os.ErrNotExist)
	}
	return files, nil
}

func same(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// open opens the log at path so that at most tail lines lie ahead; a negative
// tail is the whole log.
func open(path string, tail int64) (*parts, error) {
	files, err := openAll(path)
	if err != nil {
		return nil, err
	}
	p := &parts{path: path, files: files}
	if tail >= 0 {
		if err := p.seekTail(tail); err != nil {
			p.close()
			return nil, err
		}
	}
	p.reader = bufio.NewReader(p.files[0])
	return p, nil
}

// seekTail walks back from the end until tail lines are ahead.
func (p *parts) seekTail(tail int64) error {
	for i := len(p.files) - 1; i >= 0; i-- {
		found, err := seekLines(p.files[i], tail)
		if err != nil {
			return err
		}
		if tail -= found; tail == 0 {
			for _, f := range p.files[:i] {
				f.Close()
			}
			p.files = p.files[i:]
			return nil
		}
	}
	return nil
}

// seekLines places f before its last n lines, or at its begin if it has fewer,
// and returns how many lines are ahead. A last line without end counts.
func seekLines(f *os.File, n int64) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return 0, err
	}
	const block = 32 << 10
	buffer := make([]byte, block)
	lines := int64(0)
	for at := end; at > 0; {
		size := min(at, block)
		at -= size
		if _, err := f.ReadAt(buffer[:size], at); err != nil {
			return 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if at+i == end-1 {
				lines = 1 // the last byte belongs to the last line, whatever it is
				continue
			}
			if buffer[i] == '\n' {
				if lines == n {
					_, err := f.Seek(at+i+1, io.SeekStart)
					return n, err
				}
				lines++
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return lines, err
}

// drain hands every complete line that is there to line, going on to newer
// files as they appear.
func (p *parts) drain(line func([]byte) error) error {
	for {
		if err := p.drainFile(line); err != nil {
			return err
		}
		if len(p.files) == 1 {
			more, err := p.newer()
			if err != nil || len(more) == 0 {
				return err
			}
			// The writer may have put a last line into the old file after we
			// saw its end and before the new file appeared.
			p.files = append(p.files, more...)
			continue
		}
		p.files[0].Close()
		p.files = p.files[1:]
		p.reader.Reset(p.files[0])
		p.pending = nil
	}
}

func (p *parts) drainFile(line func([]byte) error) error {
	for {
		chunk, err := p.reader.ReadBytes('\n')
		p.pending = append(p.pending, chunk...)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read log: %w", err)
		}
		if err := line(p.pending); err != nil {
			return err
		}
		p.pending = nil
	}
}

// newer opens the files that come after the last one open here.
func (p *parts) newer() ([]*os.File, error) {
	last := p.files[len(p.files)-1]
	if info, ok := exists(p.path); !ok || sameInfo(last, info) {
		return nil, nil // not rotated, or between rename and reopening
	}
	files, err := openAll(p.path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	after := len(files) - 1 // if ours was removed already, go on with the live file
	for i, f := range files {
		if same(last, f) {
			after = i + 1
		}
	}
	for _, f := range files[:after] {
		f.Close()
	}
	files = files[after:]
	if len(files) == 1 && isEmpty(files[0]) {
		// The runtime makes the new file before it turns away from ours.
		files[0].Close()
		return nil, nil
	}
	return files, nil
}

func isEmpty(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Size() == 0
}

func sameInfo(f *os.File, info os.FileInfo) bool {
	have, err := f.Stat()
	return err == nil && os.SameFile(have, info)
}

func (p *parts) close() {
	for _, f := range p.files {
		f.Close()
	}
}
