package main

import (
	"os"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

// newKubectlCommand is upstream's kubectl with its own flags, help, plugins and
// exit codes.
func newKubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl",
		Short:              "Run kubectl",
		Example:            "  weft-server kubectl --kubeconfig /var/lib/weft/server/admin.kubeconfig get nodes",
		DisableFlagParsing: true,
		Run: func(_ *cobra.Command, args []string) {
			cmd := kubectl.NewDefaultKubectlCommandWithArgs(kubectl.KubectlOptions{
				PluginHandler: kubectl.NewDefaultPluginHandler([]string{"kubectl"}),
				Arguments:     append([]string{"kubectl"}, args...),
				IOStreams:     streams(),
			})
			cmd.SetArgs(args)
			if err := cli.RunNoErrOutput(cmd); err != nil {
				util.CheckErr(err)
			}
		},
	}
}

func streams() genericiooptions.IOStreams {
	return genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
}
