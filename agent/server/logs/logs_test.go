package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const sample = `2026-01-01T00:00:01.5Z stdout F one
2026-01-01T00:00:02Z stderr F two
2026-01-01T00:00:03Z stdout P thr
2026-01-01T00:00:04Z stdout F ee
not a log line
2026-01-01T00:00:05Z stdout F 
`

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func stopped(context.Context) bool { return false }

func TestCopySelects(t *testing.T) {
	at := func(second int) time.Time { return time.Date(2026, 1, 1, 0, 0, second, 0, time.UTC) }
	for name, test := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"everything, partial lines joined": {func(*Options) {}, "one\ntwo\nthree\n\n"},
		"one stream":                       {func(o *Options) { o.Stream = "stderr" }, "two\n"},
		"the last lines of the file":       {func(o *Options) { o.TailLines = 3 }, "ee\n\n"},
		"more last lines than there are":   {func(o *Options) { o.TailLines = 100 }, "one\ntwo\nthree\n\n"},
		"no lines":                         {func(o *Options) { o.TailLines = 0 }, ""},
		"lines since a time":               {func(o *Options) { o.Since = at(2) }, "two\nthree\n\n"},
		"nothing after the end":            {func(o *Options) { o.Since = at(9) }, ""},
		"at most so many bytes":            {func(o *Options) { o.LimitBytes = 6 }, "one\ntw"},
		"times before whole lines only": {func(o *Options) { o.Timestamps = true },
			"2026-01-01T00:00:01.500000000Z one\n2026-01-01T00:00:02.000000000Z two\n2026-01-01T00:00:03.000000000Z three\n2026-01-01T00:00:05.000000000Z \n"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			write(t, path, sample)
			o := All()
			test.change(&o)
			var out bytes.Buffer
			if err := Copy(t.Context(), &out, path, o, stopped); err != nil {
				t.Fatal(err)
			}
			if out.String() != test.want {
				t.Errorf("%q, want %q", out.String(), test.want)
			}
		})
	}
}

func lines(from, to int) (text string) {
	for i := from; i < to; i++ {
		text += fmt.Sprintf("2026-01-01T00:00:01Z stdout F %d\n", i)
	}
	return text
}

func plain(from, to int) (text string) {
	for i := from; i < to; i++ {
		text += fmt.Sprintf("%d\n", i)
	}
	return text
}

func TestRotatedPartsAreReadInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path+".20260101-000001.000000000", lines(0, 5000))
	write(t, path+".20260101-000002.000000000", lines(5000, 5010))
	write(t, path, lines(5010, 5020))
	for tail, first := range map[int64]int{-1: 0, 5: 5015, 10: 5010, 11: 5009, 20: 5000, 21: 4999, 4000: 1020, 9999: 0} {
		o := All()
		o.TailLines = tail
		var out bytes.Buffer
		if err := Copy(t.Context(), &out, path, o, stopped); err != nil {
			t.Fatal(err)
		}
		if out.String() != plain(first, 5020) {
			t.Errorf("the last %d lines begin with %.8q", tail, out.String())
		}
	}
}

func TestMissingLogIsNotExist(t *testing.T) {
	for _, follow := range []bool{false, true} {
		o := All()
		o.Follow = follow
		err := Copy(t.Context(), &bytes.Buffer{}, filepath.Join(t.TempDir(), "0.log"), o, stopped)
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("follow %v: %v", follow, err)
		}
	}
}

// safeBuffer is a buffer that one goroutine writes and another reads.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *safeBuffer) await(t *testing.T, want string) {
	t.Helper()
	for deadline := time.Now().Add(4 * time.Second); s.String() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("have %q, want %q", s.String(), want)
		}
	}
}

// container writes a log as the runtime does.
type container struct {
	path    string
	file    *os.File
	running atomic.Bool
}

func startContainer(t *testing.T) *container {
	c := &container{path: filepath.Join(t.TempDir(), "0.log")}
	c.running.Store(true)
	c.reopen(t)
	return c
}

func (c *container) reopen(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(c.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if c.file != nil {
		c.file.Close()
	}
	c.file = f
}

func (c *container) print(t *testing.T, text string) {
	t.Helper()
	if _, err := c.file.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func (c *container) follow(ctx context.Context, o Options) (*safeBuffer, chan error) {
	o.Follow = true
	out, done := &safeBuffer{}, make(chan error, 1)
	go func() { done <- Copy(ctx, out, c.path, o, func(context.Context) bool { return c.running.Load() }) }()
	return out, done
}

func TestFollowGoesOnThroughRotationAndEndsWithTheContainer(t *testing.T) {
	c := startContainer(t)
	c.print(t, lines(0, 3))
	o := All()
	o.TailLines = 1
	out, done := c.follow(t.Context(), o)
	out.await(t, plain(2, 3))
	c.print(t, lines(3, 5))
	out.await(t, plain(2, 5))

	c.print(t, "2026-01-01T00:00:01Z stdout F half")
	if err := os.Rename(c.path, c.path+".20260101-000001.000000000"); err != nil {
		t.Fatal(err)
	}
	c.print(t, " a line\n") // the runtime still writes to the renamed file
	c.reopen(t)
	c.print(t, lines(5, 6))
	out.await(t, plain(2, 5)+"half a line\n"+plain(5, 6))

	c.print(t, lines(6, 7))
	c.file.Close() // the runtime closes the log, and says so a little later
	time.AfterFunc(30*time.Millisecond, func() { c.running.Store(false) })
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(3 * time.Second):
		t.Fatal("follow does not end with the container")
	}
	if want := plain(2, 5) + "half a line\n" + plain(5, 7); out.String() != want {
		t.Errorf("%q, want %q", out, want)
	}
}

func TestFollowLosesNothingWhileRotatingFast(t *testing.T) {
	c := startContainer(t)
	out, done := c.follow(t.Context(), All())
	for i := range 50 {
		c.print(t, lines(100*i, 100*i+99))
		if err := os.Rename(c.path, fmt.Sprintf("%s.20260101-%06d.000000000", c.path, i)); err != nil {
			t.Fatal(err)
		}
		c.print(t, lines(100*i+99, 100*i+100))
		c.reopen(t)
	}
	c.running.Store(false)
	c.file.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out.String() != plain(0, 5000) {
		t.Errorf("%d lines arrived", strings.Count(out.String(), "\n"))
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	c := startContainer(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, done := c.follow(ctx, All())
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// fakeRuntime has one running container.
type fakeRuntime struct {
	t      *testing.T
	c      *container
	refuse bool
}

func (r *fakeRuntime) ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{Id: "c"}}}, nil
}

func (r *fakeRuntime) ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest, ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{LogPath: r.c.path}}, nil
}

func (r *fakeRuntime) ReopenContainerLog(context.Context, *runtimeapi.ReopenContainerLogRequest, ...grpc.CallOption) (*runtimeapi.ReopenContainerLogResponse, error) {
	if r.refuse {
		return nil, errors.New("no")
	}
	r.c.reopen(r.t)
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

func TestRotatorKeepsTheNewestParts(t *testing.T) {
	c := startContainer(t)
	r := &Rotator{Runtime: &fakeRuntime{t: t, c: c}, MaxSize: 100, MaxFiles: 3}
	for i := range 6 {
		c.print(t, lines(10*i, 10*i+10))
		if err := r.pass(t.Context(), map[string]string{}); err != nil {
			t.Fatal(err)
		}
	}
	c.print(t, lines(60, 61))
	if err := r.pass(t.Context(), map[string]string{}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Copy(t.Context(), &out, c.path, All(), stopped); err != nil {
		t.Fatal(err)
	}
	if out.String() != plain(40, 61) {
		t.Errorf("%q", out.String())
	}
}

func TestRefusedReopeningLeavesTheLogInPlace(t *testing.T) {
	c := startContainer(t)
	r := &Rotator{Runtime: &fakeRuntime{t: t, c: c, refuse: true}, MaxSize: 10, MaxFiles: 2}
	c.print(t, lines(0, 2))
	if err := r.pass(t.Context(), map[string]string{}); err == nil {
		t.Error("no error")
	}
	if parts, err := rotated(c.path); err != nil || len(parts) != 0 {
		t.Errorf("%v, %v", parts, err)
	}
	if info, ok := exists(c.path); !ok || info.Size() == 0 {
		t.Error("the log lost its name")
	}
}

func TestRotationThatWasCutShortIsFinished(t *testing.T) {
	c := startContainer(t)
	c.print(t, lines(0, 10))
	if err := os.Rename(c.path, c.path+".20260101-000001.000000000"); err != nil {
		t.Fatal(err) // and then the agent was killed
	}
	r := &Rotator{Runtime: &fakeRuntime{t: t, c: c}, MaxSize: 100, MaxFiles: 2}
	if err := r.pass(t.Context(), map[string]string{}); err != nil {
		t.Fatal(err)
	}
	c.print(t, lines(10, 12))
	if info, ok := exists(c.path); !ok || info.Size() == 0 {
		t.Error("the container still writes to the renamed file")
	}
}

func TestFollowStaysWithTheOldFileWhileTheRuntimeWritesToIt(t *testing.T) {
	c := startContainer(t)
	out, done := c.follow(t.Context(), All())
	c.print(t, lines(0, 1))
	out.await(t, plain(0, 1))
	if err := os.Rename(c.path, c.path+".20260101-000001.000000000"); err != nil {
		t.Fatal(err)
	}
	// The runtime makes the new file first and turns to it then.
	next, err := os.OpenFile(c.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // for the follower to see it
	c.print(t, lines(1, 2))
	out.await(t, plain(0, 2))
	c.file.Close()
	c.file = next
	c.print(t, lines(2, 3))
	out.await(t, plain(0, 3))
	c.running.Store(false)
	c.file.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestRemoveTakesAllPartsOfOneLogAlone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"1.log", "1.log.20260101-000001.000000000", "1.log.20260101-000002.000000000", "11.log", "2.log", "2.log.20260101-000003.000000000"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := Remove(filepath.Join(dir, "1.log")); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range left {
		left[i] = filepath.Base(left[i])
	}
	if want := []string{"11.log", "2.log", "2.log.20260101-000003.000000000"}; !slices.Equal(left, want) {
		t.Errorf("left: %v, want %v", left, want)
	}
	if err := Remove(filepath.Join(dir, "gone", "0.log")); err != nil {
		t.Errorf("a log whose directory is gone: %v", err)
	}
}
