// Command weft-server is a Kubernetes control plane in one process, and
// kubectl, which shares most of its code.
package main

import (
	"os"
	_ "time/tzdata" // time zones of CronJobs, on machines that have none

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is stamped by the build.
var version = "dev"

func main() {
	if err := newCommand().Execute(); err != nil {
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	// Upstream packages register flags of their programs for everybody.
	pflag.CommandLine = pflag.NewFlagSet("weft-server", pflag.ContinueOnError)
	cmd := &cobra.Command{
		Use:          "weft-server",
		Short:        "Weft's control plane",
		Long:         "weft-server runs a Kubernetes control plane in one process: store, API server, controllers, scheduler.",
		Version:      version,
		SilenceUsage: true,
	}
	cmd.AddCommand(newRunCommand(), newKubectlCommand())
	return cmd
}
