package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft.dev/weft/cmd/weft/localcluster"
	"weft.dev/weft/cmd/weft/progress"
	"weft.dev/weft/cmd/weft/supervise"
)

func nameFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("name", localcluster.DefaultName, "name of the cluster")
}

// binDir is where weft's own programs stand: beside this one.
func binDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	self, err = filepath.EvalSymlinks(self)
	return filepath.Dir(self), err
}

func upCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make a cluster on this machine, or what is missing of it",
		Example: `  sudo weft up
  sudo weft up --nodes 3
  sudo weft up --name test --routing native`,
		Args: cobra.NoArgs,
	}
	o := localcluster.UpOptions{Display: progress.New(os.Stdout)}
	name := nameFlag(cmd)
	cmd.Flags().IntVar(&o.Nodes, "nodes", 0, "number of nodes; a cluster that exists can grow (default 1)")
	cmd.Flags().StringVar(&o.Routing, "routing", "", "how packets reach other nodes: vxlan or native (default vxlan)")
	cmd.Flags().DurationVar(&o.Timeout, "timeout", 2*time.Minute, "how long to wait for all nodes to be ready")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		o.Name = *name
		if o.BinDir, err = binDir(); err != nil {
			return err
		}
		c, err := localcluster.Up(cmd.Context(), o)
		if err != nil {
			return err
		}
		fmt.Printf("\nCluster %s is up. Use it with:\n  export KUBECONFIG=%s\n", c.Name, c.Kubeconfig())
		return nil
	}
	return cmd
}

func downCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove a cluster of this machine and all it made",
		Example: `  sudo weft down
  sudo weft down --name test`,
		Args: cobra.NoArgs,
	}
	name := nameFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return localcluster.Down(cmd.Context(), *name, progress.New(os.Stdout))
	}
	return cmd
}

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Describe a cluster of this machine",
		Long:  "Describe a cluster of this machine.\n\nExit code: 0 all works, 1 there is no such cluster, 2 something does not work.",
		Example: `  sudo weft status
  sudo weft status --name test`,
		Args: cobra.NoArgs,
	}
	name := nameFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := localcluster.Load(*name)
		if err != nil {
			if names := localcluster.List(); len(names) > 0 {
				err = fmt.Errorf("%w; there are: %s", err, strings.Join(names, ", "))
			}
			return err
		}
		healthy, err := c.Status(cmd.Context(), os.Stdout)
		if err == nil && !healthy {
			return exitCode(2)
		}
		return err
	}
	return cmd
}

func kubeconfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "kubeconfig",
		Short:   "Print the administrator's kubeconfig of a cluster",
		Example: "  sudo weft kubeconfig > ~/.kube/config",
		Args:    cobra.NoArgs,
	}
	name := nameFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		c, err := localcluster.Load(*name)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(c.Kubeconfig())
		if err != nil {
			return fmt.Errorf("cluster %s has no kubeconfig yet: %w", c.Name, err)
		}
		_, err = os.Stdout.Write(text)
		return err
	}
	return cmd
}

// kubectlCommand passes all of its arguments on, so the cluster is named by
// the environment: WEFT_CLUSTER, or KUBECONFIG for any other.
func kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [ARGUMENTS...]",
		Short: "Run the kubectl that is built into weft-server against a cluster",
		Long: "Run the kubectl that is built into weft-server.\n\n" +
			"It speaks to the cluster of KUBECONFIG if that is set, else to the local cluster\nnamed by WEFT_CLUSTER (default " + localcluster.DefaultName + ").",
		Example: `  sudo weft kubectl get pods -A
  sudo WEFT_CLUSTER=test weft kubectl get nodes`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			env := os.Environ()
			if os.Getenv("KUBECONFIG") == "" {
				name := os.Getenv("WEFT_CLUSTER")
				if name == "" {
					name = localcluster.DefaultName
				}
				c, err := localcluster.Load(name)
				if err != nil {
					return err
				}
				env = append(env, "KUBECONFIG="+c.Kubeconfig())
			}
			return execServer(append([]string{"kubectl"}, args...), env)
		},
	}
}

// execServer replaces this process by weft-server.
func execServer(args, env []string) error {
	dir, err := binDir()
	if err != nil {
		return err
	}
	path, err := exec.LookPath(filepath.Join(dir, "weft-server"))
	if err != nil {
		return fmt.Errorf("weft-server must stand beside weft: %w", err)
	}
	return syscall.Exec(path, append([]string{path}, args...), env)
}

func serverCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "server [FLAGS...]",
		Short: "Run the control plane: etcd, API server, scheduler and controllers",
		Example: `  weft server --state-dir /var/lib/weft/server --advertise-address 192.0.2.10
  weft server --help`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return execServer(append([]string{"run"}, args...), os.Environ())
		},
	}
}

func imageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Container images on the nodes of a cluster"}
	load := &cobra.Command{
		Use:   "load TAR...",
		Short: "Import image archives (OCI or docker save) into every node",
		Example: `  sudo weft image load bin/images/busybox.tar
  docker save my-app | sudo weft image load /dev/stdin`,
		Args: cobra.MinimumNArgs(1),
	}
	name := nameFlag(load)
	load.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := localcluster.Load(*name)
		if err != nil {
			return err
		}
		display := progress.New(os.Stdout)
		for _, archive := range args {
			err := display.Step(filepath.Base(archive), func(say func(string)) error {
				images, err := c.LoadImage(cmd.Context(), archive)
				say(strings.Join(images, ", "))
				return err
			})
			if err != nil {
				return fmt.Errorf("load %s: %w", archive, err)
			}
		}
		return nil
	}
	cmd.AddCommand(load, mirrorCommand())
	return cmd
}

func mirrorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mirror REGISTRY URL",
		Short: "Have the nodes pull a registry's images from a mirror",
		Long:  "Have the nodes ask a mirror for a registry's images first, and the registry itself for what the mirror lacks.",
		Example: `  sudo weft image mirror docker.io http://172.30.0.1:5000
  sudo weft image mirror --remove docker.io`,
		Args: cobra.RangeArgs(1, 2),
	}
	name := nameFlag(cmd)
	remove := cmd.Flags().Bool("remove", false, "pull from the registry itself again")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if *remove == (len(args) == 2) {
			return errors.New("give a registry and the mirror's URL, or --remove and the registry")
		}
		c, err := localcluster.Load(*name)
		if err != nil {
			return err
		}
		if *remove {
			return c.Unmirror(args[0])
		}
		return c.Mirror(args[0], args[1])
	}
	return cmd
}

func nodeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "The nodes of a cluster"}
	run := &cobra.Command{
		Use:   "exec NODE -- COMMAND [ARGUMENTS...]",
		Short: "Run a command in a node's network namespace",
		Example: `  sudo weft node exec node-1 -- ip route
  sudo weft node exec node-2 -- curl -s http://10.96.0.1/`,
		Args: cobra.MinimumNArgs(2),
	}
	name := nameFlag(run)
	run.RunE = func(_ *cobra.Command, args []string) error {
		c, err := localcluster.Load(*name)
		if err != nil {
			return err
		}
		node, err := c.FindNode(args[0])
		if err != nil {
			return err
		}
		code, err := c.Exec(node, args[1:])
		if err == nil && code != 0 {
			return exitCode(code)
		}
		return err
	}
	cmd.AddCommand(run)
	return cmd
}

func superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "supervise SPECIFICATION",
		Short:  "Keep a local node's programs running",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := supervise.Load(args[0])
			if err != nil {
				return err
			}
			return supervise.Run(cmd.Context(), spec)
		},
	}
}
