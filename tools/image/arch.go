package main

import (
	"os"
	"runtime"
)

// arch is the processor architecture of the image, in Go's spelling as OCI
// images have it.
func arch() string {
	if arch := os.Getenv("GOARCH"); arch != "" {
		return arch
	}
	return runtime.GOARCH
}
