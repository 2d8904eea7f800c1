// Package logs reads and rotates the log files that the container runtime
// writes.
//
//	runtime ──► DIR/0.log                        the live file
//	Rotator ──► DIR/0.log.20260102-150405.000000000   earlier parts, oldest first by name
//	Copy    ◄── all parts in order, then inotify on DIR for what comes
//
// The format is CRI's, one line per write of the container:
//
//	2026-01-02T15:04:05.999999999Z stdout F text
//
// where F ends a line of the container and P leaves it open; see
// https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md.
package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Options select from a log, as PodLogOptions does.
type Options struct {
	// Follow waits for more until the container ends.
	Follow bool
	// TailLines is the number of last lines to begin with; negative is all.
	TailLines int64
	// LimitBytes ends the copy after so many bytes; negative is no limit.
	LimitBytes int64
	// Since leaves out what was written before; zero is everything.
	Since time.Time
	// Timestamps puts the time before each line.
	Timestamps bool
	// Stream is "stdout", "stderr", or "" for both.
	Stream string
}

// All is the whole log.
func All() Options { return Options{TailLines: -1, LimitBytes: -1} }

// timestampFormat is what users see: RFC 3339 with all nine digits.
const timestampFormat = "2006-01-02T15:04:05.000000000Z07:00"

const (
	// endChecks is how often, doubling from endCheckDelay, the container is
	// asked for after its log was closed: the runtime closes the log a little
	// before it says that the container has ended.
	endChecks     = 6
	endCheckDelay = 20 * time.Millisecond
	// safetyNet is how often it is asked for without any event.
	safetyNet = 5 * time.Second
)

var errLimit = errors.New("limit reached")

// Copy writes the log whose live file is path to w. With Follow it returns
// when running reports false and all is written, or with ctx's error; w is
// written to in whole batches. An error for which errors.Is(err, os.ErrNotExist)
// means that there is no log.
func Copy(ctx context.Context, w io.Writer, path string, o Options, running func(context.Context) bool) error {
	var events *watcher
	if o.Follow {
		// Before the first read, so that nothing is missed in between.
		var err error
		if events, err = watch(path); err != nil {
			return err
		}
		defer events.close()
	}
	parts, err := open(path, o.TailLines)
	if err != nil {
		return err
	}
	defer parts.close()
	buffered := bufio.NewWriterSize(w, 32<<10)
	out := &formatter{out: buffered, options: o, left: o.LimitBytes}
	drain := func() error {
		if err := parts.drain(out.line); err != nil {
			return err
		}
		return buffered.Flush()
	}
	err = drain()
	if err == nil && o.Follow {
		err = follow(ctx, events, drain, running)
	}
	if errors.Is(err, errLimit) {
		return buffered.Flush()
	}
	return err
}

// follow drains after each event until the container has ended.
func follow(ctx context.Context, events *watcher, drain func() error, running func(context.Context) bool) error {
	ticker := time.NewTicker(safetyNet)
	defer ticker.Stop()
	var endCheck <-chan time.Time
	checks, delay := 0, endCheckDelay
	for first := true; ; first = false {
		ask := first
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			ask = true
		case <-endCheck:
			ask = true
		case <-events.wake:
			if events.closed.Swap(false) {
				ask, checks, delay = true, endChecks, endCheckDelay
			}
		case <-closedIf(first):
		}
		ended := ask && !running(ctx)
		if err := drain(); err != nil {
			return err
		}
		if ended {
			return nil
		}
		if ask && checks > 0 {
			endCheck = time.After(delay)
			checks, delay = checks-1, 2*delay
		}
	}
}

// closedIf is a channel that is ready at once if now, else never.
func closedIf(now bool) <-chan struct{} {
	if !now {
		return nil
	}
	c := make(chan struct{})
	close(c)
	return c
}

// formatter turns lines of the file into lines for the user.
type formatter struct {
	out     io.Writer
	options Options
	left    int64 // bytes, negative for no limit
	open    map[string]bool
}

// line writes one line of the file. Malformed lines are left out.
func (f *formatter) line(raw []byte) error {
	if f.left == 0 {
		return errLimit
	}
	e, err := parse(raw)
	if err != nil {
		return nil
	}
	if f.options.Stream != "" && f.options.Stream != e.stream || e.time.Before(f.options.Since) {
		return nil
	}
	if f.open == nil {
		f.open = map[string]bool{}
	}
	text := e.text
	if f.options.Timestamps && !f.open[e.stream] {
		text = append(append(e.time.AppendFormat(nil, timestampFormat), ' '), text...)
	}
	f.open[e.stream] = e.partial
	if !e.partial {
		text = append(text, '\n')
	}
	if f.left > 0 && int64(len(text)) > f.left {
		text = text[:f.left]
	}
	if _, err := f.out.Write(text); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	if f.left > 0 {
		if f.left -= int64(len(text)); f.left == 0 {
			return errLimit
		}
	}
	return nil
}

// entry is one parsed line.
type entry struct {
	time    time.Time
	stream  string
	partial bool
	text    []byte // without line end; owned by the caller of parse
}

func parse(raw []byte) (entry, error) {
	raw = bytes.TrimSuffix(raw, []byte("\n"))
	stamp, rest, ok1 := bytes.Cut(raw, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tags, text, ok3 := bytes.Cut(rest, []byte(" "))
	if !ok1 || !ok2 || !ok3 && len(tags) == 0 {
		return entry{}, errors.New("log line has fewer than three fields")
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return entry{}, err
	}
	first, _, _ := bytes.Cut(tags, []byte(":"))
	e := entry{time: at, stream: string(stream), partial: string(first) == "P", text: bytes.Clone(text)}
	if e.stream != "stdout" && e.stream != "stderr" {
		return entry{}, fmt.Errorf("unknown stream %q", e.stream)
	}
	return e, nil
}

// exists is os.Stat without the error for a missing file.
func exists(path string) (os.FileInfo, bool) {
	info, err := os.Stat(path)
	return info, err == nil
}
