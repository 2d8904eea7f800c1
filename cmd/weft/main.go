// Command weft is the command line of Weft, its node agent and its local
// cluster. It links none of the upstream control plane, which is weft-server's.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

// exitCode is an error that ends the program with a code and no message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	var code exitCode
	switch {
	case errors.As(err, &code):
		os.Exit(int(code))
	case err != nil:
		fmt.Fprintln(os.Stderr, "weft: "+err.Error())
		os.Exit(1)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "weft",
		Short: "Kubernetes workloads on an eBPF network, from a few static programs",
		Example: `  # a cluster of two nodes on this machine
  sudo weft up --nodes 2
  sudo weft kubectl get nodes
  sudo weft down`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	verbose := cmd.PersistentFlags().BoolP("verbose", "v", false, "log per object, for debugging")
	cmd.PersistentPreRun = func(*cobra.Command, []string) { setUpLogging(*verbose) }
	cmd.AddGroup(
		&cobra.Group{ID: "local", Title: "A cluster on this machine:"},
		&cobra.Group{ID: "roles", Title: "Roles of a machine in a cluster:"},
	)
	for _, sub := range []*cobra.Command{upCommand(), downCommand(), statusCommand(), kubeconfigCommand(), kubectlCommand(), imageCommand(), nodeCommand()} {
		sub.GroupID = "local"
		cmd.AddCommand(sub)
	}
	for _, sub := range []*cobra.Command{serverCommand(), agentCommand()} {
		sub.GroupID = "roles"
		cmd.AddCommand(sub)
	}
	cmd.AddCommand(superviseCommand())
	return cmd
}

// setUpLogging is the one place that configures logs.
func setUpLogging(verbose bool) {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	handler := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})
	slog.SetDefault(slog.New(handler))
}
