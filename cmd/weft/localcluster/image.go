package localcluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sync/errgroup"

	"weft.dev/weft/agent/cri"
)

// LoadImage imports an archive into every node and returns the names of its
// images. The archive may be a pipe: it is read once.
func (c *Cluster) LoadImage(ctx context.Context, archive string) ([]string, error) {
	content, err := os.ReadFile(archive)
	if err != nil {
		return nil, err
	}
	var images []string
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range c.AllNodes() {
		group.Go(func() error {
			names, err := importImages(ctx, node, bytes.NewReader(content))
			if err != nil {
				return fmt.Errorf("%s: %w", node.Name, err)
			}
			if node.index == 1 {
				images = names
			}
			return nil
		})
	}
	return images, group.Wait()
}

func importImages(ctx context.Context, n Node, archive io.Reader) ([]string, error) {
	runtime, err := cri.Dial(n.containerd("/").Socket(), slog.Default())
	if err != nil {
		return nil, err
	}
	defer runtime.Close()
	return cri.ImportImages(ctx, runtime.Conn(), archive)
}
