package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The tests, as netperf calls them: one byte there and one back, over and
// over; with tcpCRR on a new connection each time, which the server closes.
const (
	tcpRR  = "TCP_RR"
	udpRR  = "UDP_RR"
	tcpCRR = "TCP_CRR"
)

var tests = []string{tcpRR, udpRR, tcpCRR}

// What a client's byte asks of the server after the answer.
const (
	keepOpen = 'k'
	closeNow = 'c'
)

// loadPort is where servers listen, TCP and UDP.
const loadPort = 7000

// How long a client waits: for a datagram's answer, which is then counted as
// lost, and for TCP, where a lost packet costs a retransmission and a longer
// silence is an error.
const (
	datagramTimeout = time.Second
	streamTimeout   = 10 * time.Second
)

// Load is what one client saw in one run.
type Load struct {
	Transactions int     `json:"transactions"`
	Lost         int     `json:"lost"` // datagrams without an answer in time
	PerSecond    float64 `json:"perSecond"`
	P50          float64 `json:"p50Microseconds"`
	P99          float64 `json:"p99Microseconds"`
	// CPU is what one transaction costs client and server, in microseconds of
	// processor time; the client itself reports only its own part. What the
	// kernel does on behalf of neither (ksoftirqd) is missing.
	CPU float64 `json:"cpuMicroseconds"`
}

// serveMain answers one TCP client at a time, and UDP, until killed. Sockets
// block and each loop is its own thread, so that the Go scheduler and its
// poller are no part of what is measured.
func serveMain([]string) error {
	listener, err := listen(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	if err := unix.Listen(listener, 128); err != nil {
		return err
	}
	datagrams, err := listen(unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	go serveUDP(datagrams)
	for {
		conn, _, err := unix.Accept(listener)
		if err == nil {
			serveTCP(conn)
		} else if err != unix.EINTR && err != unix.ECONNABORTED {
			return fmt.Errorf("accept: %w", err)
		}
	}
}

func listen(kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return 0, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrInet4{Port: loadPort})
}

// serveTCP answers one connection to its end. Whatever ends it ends it.
func serveTCP(conn int) {
	defer unix.Close(conn)
	_ = unix.SetsockoptInt(conn, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	buf := make([]byte, 1)
	for {
		n, err := again(func() (int, error) { return unix.Read(conn, buf) })
		if n != 1 || err != nil {
			return
		}
		if _, err := unix.Write(conn, buf); err != nil || buf[0] == closeNow {
			return
		}
	}
}

func serveUDP(fd int) {
	buf := make([]byte, 1)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil || n != 1 {
			continue
		}
		// A lost answer shows at the client.
		_ = unix.Sendto(fd, buf, 0, from)
	}
}

// loadMain runs one test and prints a Load as JSON.
func loadMain(args []string) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	test := flags.String("test", tcpRR, "TCP_RR, UDP_RR or TCP_CRR")
	to := flags.String("to", "", "address and port of the server")
	duration := flags.Duration("duration", time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	target, err := netip.ParseAddrPort(*to)
	if err != nil {
		return err
	}
	debug.SetGCPercent(-1) // a run is short
	load, err := generate(*test, &unix.SockaddrInet4{Addr: target.Addr().As4(), Port: int(target.Port())}, *duration)
	if err != nil {
		return fmt.Errorf("%s to %s: %w", *test, target, err)
	}
	return json.NewEncoder(os.Stdout).Encode(load)
}

// generate repeats the test's transaction until time is up.
func generate(test string, to unix.Sockaddr, duration time.Duration) (Load, error) {
	transact, err := transaction(test, to)
	if err != nil {
		return Load{}, err
	}
	var lost int
	isLoss := func(err error) bool { return test == udpRR && errors.Is(err, unix.EAGAIN) }
	// The first one is not timed: it resolves what has to be resolved.
	if err := transact(); isLoss(err) {
		lost++
	} else if err != nil {
		return Load{}, err
	}
	times := make([]time.Duration, 0, 1<<20)
	before, err := cpuTime(os.Getpid())
	if err != nil {
		return Load{}, err
	}
	began := time.Now()
	last := began
	for last.Sub(began) < duration {
		err := transact()
		now := time.Now()
		switch {
		case err == nil:
			times = append(times, now.Sub(last))
		case isLoss(err):
			lost++
		default:
			return Load{}, err
		}
		last = now
	}
	after, err := cpuTime(os.Getpid())
	return summarize(times, lost, last.Sub(began), after-before), err
}

func summarize(times []time.Duration, lost int, took, cpu time.Duration) Load {
	load := Load{Transactions: len(times), Lost: lost, PerSecond: float64(len(times)) / took.Seconds()}
	if len(times) > 0 {
		slices.Sort(times)
		load.P50 = microseconds(times[len(times)/2])
		load.P99 = microseconds(times[len(times)*99/100])
		load.CPU = microseconds(cpu) / float64(len(times))
	}
	return load
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// transaction prepares a test and returns one repetition of it.
func transaction(test string, to unix.Sockaddr) (func() error, error) {
	switch test {
	case tcpCRR:
		return func() error {
			fd, err := connect(unix.SOCK_STREAM, to)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return exchange(fd, closeNow)
		}, nil
	case udpRR, tcpRR:
		kind := unix.SOCK_STREAM
		if test == udpRR {
			kind = unix.SOCK_DGRAM
		}
		fd, err := connect(kind, to)
		return func() error { return exchange(fd, keepOpen) }, err
	}
	return nil, fmt.Errorf("unknown test %q", test)
}

func connect(kind int, to unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	limit := datagramTimeout
	if kind == unix.SOCK_STREAM {
		limit = streamTimeout
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	timeout := unix.NsecToTimeval(limit.Nanoseconds())
	err = errors.Join(err,
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)) // bounds connect, too
	if err == nil {
		err = unix.Connect(fd, to)
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// exchange sends a byte and waits for its answer; after closeNow, for the end.
func exchange(fd int, ask byte) error {
	buf := [1]byte{ask}
	if _, err := unix.Write(fd, buf[:]); err != nil {
		return err
	}
	n, err := again(func() (int, error) { return unix.Read(fd, buf[:]) })
	if err == nil && n != 1 {
		err = errors.New("the server closed the connection")
	}
	if err != nil || ask == keepOpen {
		return err
	}
	n, err = again(func() (int, error) { return unix.Read(fd, buf[:]) })
	if err == nil && n != 0 {
		err = errors.New("the server did not close the connection")
	}
	return err
}

// again repeats what a signal interrupted.
func again(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); err != unix.EINTR {
			return n, err
		}
	}
}
