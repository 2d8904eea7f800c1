// Command app is Weft's demo: a small web application that shows which pod
// answered, what configuration it has, and that it can find and reach another
// Service.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		slog.Error("stopped", "error", err)
		os.Exit(1)
	}
}

// run is the application, or one of its helpers: "wait-for ADDRESS" and
// "ask ADDRESS".
func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 0:
		go echoUDP(ctx, ":8081")
		return serve(ctx, ":8080")
	case len(args) == 2 && args[0] == "wait-for":
		return waitFor(ctx, args[1])
	case len(args) == 2 && args[0] == "ask":
		return ask(args[1])
	default:
		return fmt.Errorf("unknown arguments %q; use none, wait-for ADDRESS, or ask ADDRESS", args)
	}
}

// ask sends a datagram and prints the answer.
func ask(address string) error {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	answer := make([]byte, 65535)
	n, err := conn.Read(answer)
	fmt.Printf("%s\n", answer[:n])
	return err
}

// waitFor returns once the address accepts a connection; the demo's init
// container uses it.
func waitFor(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		dialer := net.Dialer{Timeout: time.Second}
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func serve(ctx context.Context, address string) error {
	var stopping atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/", home)
	mux.HandleFunc("/whoami", whoami)
	mux.HandleFunc("/reach/{host}", reach)
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if stopping.Load() {
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		stopping.Store(true)
		// Requests sent before every client has heard that this pod goes away
		// still get their answer.
		time.Sleep(2 * time.Second)
		server.Shutdown(context.Background())
	}()
	slog.Info("serving", "address", address)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func home(w http.ResponseWriter, r *http.Request) {
	greeting, err := os.ReadFile("/config/greeting")
	if err != nil {
		greeting = []byte("Hello")
	}
	fmt.Fprintf(w, "%s from %s on %s\n", strings.TrimSpace(string(greeting)), os.Getenv("POD_NAME"), os.Getenv("NODE_NAME"))
}

// whoami shows what the pod knows of itself and how the request arrived.
func whoami(w http.ResponseWriter, r *http.Request) {
	_, tokenErr := os.Stat("/var/run/secrets/kubernetes.io/serviceaccount/token")
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{
		"pod":         os.Getenv("POD_NAME"),
		"node":        os.Getenv("NODE_NAME"),
		"address":     os.Getenv("POD_IP"),
		"hasToken":    tokenErr == nil,
		"hasPassword": os.Getenv("PASSWORD") != "",
		"client":      r.RemoteAddr,
		"forwarded":   r.Header.Get("X-Forwarded-For"),
		"protocol":    r.Proto,
	})
}

// reach fetches another Service by its name.
func reach(w http.ResponseWriter, r *http.Request) {
	client := http.Client{Timeout: 3 * time.Second}
	response, err := client.Get("http://" + r.PathValue("host") + "/")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	io.Copy(w, io.LimitReader(response.Body, 1<<20))
}

// echoUDP answers each datagram with the pod's name and the datagram.
func echoUDP(ctx context.Context, address string) {
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		slog.Error("no UDP echo", "error", err)
		return
	}
	context.AfterFunc(ctx, func() { time.Sleep(2 * time.Second); conn.Close() })
	buffer := make([]byte, 65535)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		conn.WriteTo(append([]byte(os.Getenv("POD_NAME")+": "), buffer[:n]...), from)
	}
}
