// Command weft-cni is the CNI plugin that container runtimes execute. It
// hands each request to the node agent; see package cni.
package main

import (
	"os"

	"weft.dev/weft/cni"
)

func main() {
	os.Exit(cni.Main())
}
