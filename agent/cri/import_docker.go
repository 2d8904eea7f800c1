package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
)

// registerDocker makes a manifest for each image of docker save.
func (im *importer) registerDocker(ctx context.Context, list blob) ([]string, error) {
	var all []dockerImage
	if err := json.Unmarshal(im.json[list.digest], &all); err != nil {
		return nil, fmt.Errorf("read manifest.json: %w", err)
	}
	var names []string
	for _, image := range all {
		d, err := im.dockerManifest(ctx, image)
		if err != nil {
			return names, err
		}
		for _, tag := range image.RepoTags {
			full, err := im.create(ctx, tag, d)
			if err != nil {
				return names, err
			}
			names = append(names, full)
		}
	}
	return names, nil
}

func (im *importer) dockerManifest(ctx context.Context, image dockerImage) (descriptor, error) {
	config, err := im.file(image.Config)
	if err != nil {
		return descriptor{}, err
	}
	m := manifest{SchemaVersion: 2, MediaType: mediaDockerManifest,
		Config: descriptor{MediaType: mediaDockerConfig, Digest: config.digest, Size: config.size}}
	for _, name := range image.Layers {
		layer, err := im.file(name)
		if err != nil {
			return descriptor{}, err
		}
		kind := mediaDockerLayer
		if layer.gzip {
			kind = mediaDockerLayerGz
		}
		m.Layers = append(m.Layers, descriptor{MediaType: kind, Digest: layer.digest, Size: layer.size})
	}
	data, err := json.Marshal(m)
	if err != nil {
		return descriptor{}, fmt.Errorf("encode manifest: %w", err)
	}
	stored, err := im.store(ctx, "manifest of "+image.Config, int64(len(data)), bytes.NewReader(data))
	if err != nil {
		return descriptor{}, fmt.Errorf("store manifest: %w", err)
	}
	d := descriptor{MediaType: mediaDockerManifest, Digest: stored.digest, Size: stored.size}
	return d, im.holdManifest(ctx, d, m)
}

// holdManifest unpacks an image and labels its manifest and configuration
// with what they refer to.
func (im *importer) holdManifest(ctx context.Context, d descriptor, m manifest) error {
	if d.Platform.isOurs() {
		chain, err := im.unpack(ctx, m, im.json[m.Config.Digest])
		if err != nil {
			return err
		}
		if err := im.label(ctx, m.Config.Digest, map[string]string{snapshotGCLabel: chain}); err != nil {
			return err
		}
	}
	return im.label(ctx, d.Digest, m.references())
}
