package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"

	"github.com/google/pprof/profile"
	"k8s.io/client-go/rest"
)

// controlSocket is where partWeft takes orders, in its state directory.
const controlSocket = "control.sock"

// Orders to partWeft.
const (
	orderStart = "/start" // the controllers
	orderStop  = "/stop"
	orderCPU   = "/cpu" // what the controllers have used, in nanoseconds
)

// partLabel tells in CPU profiles what the controllers do from what the API
// server does for them and for others. Goroutines inherit labels.
const partLabel = "part"

var (
	controllersLabel = pprof.WithLabels(context.Background(), pprof.Labels(partLabel, "controllers"))
	serverLabel      = pprof.WithLabels(context.Background(), pprof.Labels(partLabel, "server"))
)

// control starts and stops the controllers inside the API server's process,
// and keeps account of their CPU time: that of the process, shared out as the
// samples of a CPU profile are. Samples of neither, those of the garbage
// collector and of the scheduler, count for both in proportion.
type control struct {
	loopback *rest.Config

	mu     sync.Mutex
	stop   context.CancelFunc // nil while no controllers run
	ended  chan struct{}
	err    error
	data   bytes.Buffer // of the running profile
	before time.Duration
	used   time.Duration
	all    []*profile.Profile
}

// runControl takes orders until ctx is done.
func runControl(ctx context.Context, dir string, loopback *rest.Config) error {
	c := &control{loopback: rest.CopyConfig(loopback)}
	c.loopback.Transport = labelled{loopback.Transport}
	listener, err := net.Listen("unix", filepath.Join(dir, controlSocket))
	if err != nil {
		return err
	}
	orders := http.NewServeMux()
	answer := func(order string, do func(*http.Request) (time.Duration, error)) {
		orders.HandleFunc(order, func(w http.ResponseWriter, r *http.Request) {
			c.mu.Lock()
			defer c.mu.Unlock()
			d, err := do(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_ = json.NewEncoder(w).Encode(d) // the other end fails too if this does
		})
	}
	maker := &floorMaker{loopback: loopback}
	answer(orderStart, func(*http.Request) (time.Duration, error) { return 0, c.start(ctx) })
	answer(orderStop, func(*http.Request) (time.Duration, error) { return 0, errors.Join(c.end(), c.write()) })
	answer(orderCPU, func(*http.Request) (time.Duration, error) { return c.cpu() })
	answer(orderPods, func(r *http.Request) (time.Duration, error) { return 0, maker.ready(ctx, r) })
	answer(orderMake, func(*http.Request) (time.Duration, error) { return 0, maker.makePods(ctx) })
	server := &http.Server{Handler: orders}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(listener); ctx.Err() == nil {
		return err
	}
	return nil
}

// labelled marks what the API server does for a controller as the server's.
type labelled struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (l labelled) RoundTrip(r *http.Request) (*http.Response, error) {
	pprof.SetGoroutineLabels(serverLabel)
	defer pprof.SetGoroutineLabels(controllersLabel)
	return l.next.RoundTrip(r)
}

func (c *control) start(ctx context.Context) error {
	ctx, c.stop = context.WithCancel(ctx)
	c.ended = make(chan struct{})
	go func() {
		defer close(c.ended)
		pprof.SetGoroutineLabels(controllersLabel)
		c.err = runControllers(ctx, c.loopback)
	}()
	return c.beginProfile()
}

func (c *control) end() error {
	if c.stop == nil {
		return nil
	}
	pprof.StopCPUProfile()
	c.stop()
	<-c.ended
	c.stop = nil
	return c.err
}

func (c *control) beginProfile() error {
	c.data.Reset()
	c.before = processCPU()
	return pprof.StartCPUProfile(&c.data)
}

// cpu adds what the controllers used since it was last asked.
func (c *control) cpu() (time.Duration, error) {
	pprof.StopCPUProfile()
	used := processCPU() - c.before
	p, err := profile.ParseData(c.data.Bytes())
	if err != nil {
		return 0, fmt.Errorf("read CPU profile: %w", err)
	}
	c.all = append(c.all, p)
	c.used += time.Duration(controllersShare(p) * float64(used))
	return c.used, c.beginProfile()
}

// controllersShare is the part of a CPU profile's labelled samples that the
// controllers have.
func controllersShare(p *profile.Profile) float64 {
	const count = 0 // the first value of a sample of a CPU profile
	sums := map[string]float64{}
	for _, sample := range p.Sample {
		for _, label := range sample.Label[partLabel] {
			sums[label] += float64(sample.Value[count])
		}
	}
	if labelled := sums["controllers"] + sums["server"]; labelled > 0 {
		return sums["controllers"] / labelled
	}
	return 0
}

// write saves the profiles, if there is a file for them.
func (c *control) write() error {
	name := os.Getenv(profileFile)
	if name == "" || len(c.all) == 0 {
		return nil
	}
	merged, err := profile.Merge(c.all)
	if err != nil {
		return err
	}
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(merged.Write(file), file.Close())
}

// processCPU is what this process has used so far, user and system.
func processCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0 // cannot fail for the process itself
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// inside are controllers in the API server's process.
type inside struct {
	ctx    context.Context
	client http.Client
}

// insideOf gives orders to the server whose state is in dir.
func insideOf(ctx context.Context, dir string) *inside {
	in := &inside{ctx: context.WithoutCancel(ctx)}
	in.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(dir, controlSocket))
	}}
	return in
}

// startInside starts the controllers of the server whose state is in dir.
func startInside(ctx context.Context, dir string) (*inside, error) {
	in := insideOf(ctx, dir)
	err := eventually(ctx, time.Minute, func() error {
		_, err := in.order(orderStart, http.NoBody)
		return err
	})
	return in, err
}

// order gives an order and returns the answer when it has been carried out.
func (in *inside) order(order string, body io.Reader) (time.Duration, error) {
	r, err := http.NewRequestWithContext(in.ctx, http.MethodPost, "http://control"+order, body)
	if err != nil {
		return 0, err
	}
	answer, err := in.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err
	}
	if answer.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("controllers: %s", bytes.TrimSpace(text))
	}
	var d time.Duration
	return d, json.Unmarshal(text, &d)
}

// alive implements underTest; the server's process is watched by others.
func (in *inside) alive() error { return nil }

func (in *inside) tail() string { return "" }

func (in *inside) cpu() (time.Duration, error) { return in.order(orderCPU, http.NoBody) }

func (in *inside) peakMemory() (int64, error) { return 0, nil }

func (in *inside) stop() {
	_, _ = in.order(orderStop, http.NoBody) // the server's end is theirs too
	in.client.CloseIdleConnections()
}
