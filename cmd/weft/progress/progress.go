// Package progress shows what a long command is doing: one line per step,
// redrawn with the time so far on a terminal, printed once at the end of the
// step otherwise.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// Display shows steps one after another. It is not for concurrent Steps.
type Display struct {
	out      io.Writer
	terminal bool
}

// New shows progress on file.
func New(file *os.File) *Display {
	return &Display{out: file, terminal: term.IsTerminal(int(file.Fd()))}
}

// Step runs one step, showing what it does until it ends. The step may call
// say to tell how far it is.
func (d *Display) Step(what string, do func(say func(string)) error) error {
	began := time.Now()
	var mu sync.Mutex
	var detail string
	say := func(text string) {
		mu.Lock()
		defer mu.Unlock()
		detail = text
	}
	stop := func() {}
	if d.terminal {
		stop = d.redraw(func() string {
			mu.Lock()
			defer mu.Unlock()
			return line("…", what, detail, began)
		})
	}
	err := do(say)
	stop()
	mark := "✓"
	if err != nil {
		mark = "✗"
	}
	d.clear()
	fmt.Fprintln(d.out, line(mark, what, detail, began))
	return err
}

func line(mark, what, detail string, began time.Time) string {
	if detail != "" {
		what += ": " + detail
	}
	return fmt.Sprintf("%s %s  (%.1fs)", mark, what, time.Since(began).Seconds())
}

// redraw shows the current line every tenth of a second until stopped.
func (d *Display) redraw(current func() string) (stop func()) {
	done := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			fmt.Fprintf(d.out, "\r\033[K%s", current())
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	})
	return func() { close(done); drawing.Wait() }
}

func (d *Display) clear() {
	if d.terminal {
		fmt.Fprint(d.out, "\r\033[K")
	}
}
