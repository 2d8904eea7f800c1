package main

import (
	"flag"
	"log/slog"
	"os"
	"strconv"

	"k8s.io/klog/v2"
)

// setupLogging sends our log and that of the Kubernetes parts to standard
// error. What the latter call information is for their developers, so at
// verbosity 0 only their warnings are shown.
func setupLogging(verbosity int) {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))

	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	// Cannot fail: the flag exists and takes a number.
	_ = flags.Set("v", strconv.Itoa(verbosity))
	level := slog.LevelWarn
	if verbosity > 0 {
		level = slog.Level(-verbosity)
	}
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
}
