package localcluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/cmd/weft/supervise"
)

// List returns the names of the clusters on this machine.
func List() []string {
	entries, _ := os.ReadDir(stateRoot)
	var names []string
	for _, entry := range entries {
		if _, err := Load(entry.Name()); err == nil {
			names = append(names, entry.Name())
		}
	}
	return names
}

// Status prints the state of the cluster and reports whether all of it works.
func (c *Cluster) Status(ctx context.Context, out io.Writer) (healthy bool, err error) {
	healthy = true
	fmt.Fprintf(out, "Cluster   %s, %d nodes on %s, routing %s\n", c.Name, c.Nodes, c.Subnet, c.Routing)
	api := "ready"
	conditions, err := c.conditions(ctx)
	if err != nil {
		api, healthy = "not ready: "+err.Error(), false
	}
	fmt.Fprintf(out, "API       https://%s %s\n\n", c.addrPort(), api)

	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tADDRESS\tSTATUS\tPROGRAMS")
	for _, node := range c.AllNodes() {
		programs, allRun := c.programStates(node)
		condition := conditions[node.Name]
		if condition == "" {
			condition = "unknown"
		}
		healthy = healthy && allRun && condition == "ready"
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", node.Name, node.Addr, condition, programs)
	}
	return healthy, table.Flush()
}

// conditions returns "ready", or why not, for every node that has joined.
func (c *Cluster) conditions(ctx context.Context) (map[string]string, error) {
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	conditions := map[string]string{}
	for _, node := range list.Items {
		conditions[node.Name] = "ready"
		if why := notReady(&node); why != "" {
			conditions[node.Name] = "not ready: " + why
		}
	}
	return conditions, nil
}

// programStates lists the node's programs with their process identifiers.
func (c *Cluster) programStates(n Node) (text string, allRun bool) {
	names := []string{"supervisor", "containerd"}
	if n.index == 1 {
		names = append(names, "server")
	}
	names = append(names, "agent")
	allRun = true
	var parts []string
	for _, name := range names {
		if pid := supervise.PID(n.runDir(), name); pid != 0 {
			parts = append(parts, fmt.Sprintf("%s(%d)", name, pid))
		} else {
			parts, allRun = append(parts, name+"(down)"), false
		}
	}
	return strings.Join(parts, " "), allRun
}
