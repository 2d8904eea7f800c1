package cri

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"runtime"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// snapshotter is the one that agent/containerd configures for CRI.
	snapshotter = "overlayfs"
	// snapshotGCLabel ties a config blob to the snapshot of its image.
	snapshotGCLabel = "containerd.io/gc.ref.snapshot." + snapshotter
	// snapshotRefLabel is how containerd finds a committed layer again.
	snapshotRefLabel = "containerd.io/snapshot.ref"
)

// unpacker makes snapshots of layers. containerd does so itself for
// containers, but not for sandboxes.
type unpacker struct {
	snapshots snapshotsapi.SnapshotsClient
	diff      diffapi.DiffClient
	lease     string
}

func newUnpacker(conn grpc.ClientConnInterface, lease string) unpacker {
	return unpacker{snapshots: snapshotsapi.NewSnapshotsClient(conn), diff: diffapi.NewDiffClient(conn), lease: lease}
}

// platform is what an index says of a manifest.
type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// isOurs reports whether this machine runs the platform.
func (p *platform) isOurs() bool {
	return p == nil || p.OS == "linux" && p.Architecture == runtime.GOARCH
}

// unpack makes the layers of a manifest and returns the ID of the chain of
// all of them. config is the image's configuration.
func (u unpacker) unpack(ctx context.Context, m manifest, config []byte) (string, error) {
	var rootfs struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &rootfs); err != nil {
		return "", fmt.Errorf("read configuration of image: %w", err)
	}
	diffs := rootfs.RootFS.DiffIDs
	if len(diffs) != len(m.Layers) {
		return "", fmt.Errorf("image has %d layers, but its configuration names %d", len(m.Layers), len(diffs))
	}
	chain := ""
	for i, layer := range m.Layers {
		next := chainID(chain, diffs[i])
		if err := u.layer(ctx, layer, chain, next); err != nil {
			return "", fmt.Errorf("unpack layer %s: %w", layer.Digest, err)
		}
		chain = next
	}
	return chain, nil
}

// chainID names a layer on top of others (OCI image specification, "Layer ChainID").
func chainID(parent, diff string) string {
	if parent == "" {
		return diff
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(parent+" "+diff)))
}

// layer makes one snapshot, unless it exists.
func (u unpacker) layer(ctx context.Context, layer descriptor, parent, chain string) error {
	_, err := u.snapshots.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: chain})
	if status.Code(err) != codes.NotFound {
		return err
	}
	key := "weft-import-" + u.lease + " " + chain
	labels := map[string]string{snapshotRefLabel: chain}
	prepared, err := u.snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{
		Snapshotter: snapshotter, Key: key, Parent: parent, Labels: labels})
	if err != nil {
		return err
	}
	_, err = u.diff.Apply(ctx, &diffapi.ApplyRequest{Mounts: prepared.Mounts,
		Diff: &types.Descriptor{MediaType: layer.MediaType, Digest: layer.Digest, Size: layer.Size}})
	if err == nil {
		_, err = u.snapshots.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{
			Snapshotter: snapshotter, Name: chain, Key: key, Labels: labels})
	}
	if err != nil {
		// What is left of it goes with the lease, at the latest.
		_, _ = u.snapshots.Remove(context.WithoutCancel(ctx), &snapshotsapi.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: key})
	}
	if status.Code(err) == codes.AlreadyExists {
		return nil // another import was faster
	}
	return err
}
