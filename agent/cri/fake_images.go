package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageStatus implements Images.
func (f *Fake) ImageStatus(_ context.Context, image string) (*runtimeapi.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Missing[image] {
		return nil, nil
	}
	return &runtimeapi.Image{Id: "sha256:" + image, RepoTags: []string{image}}, nil
}

// PullImage implements Images.
func (f *Fake) PullImage(_ context.Context, image string, _ *runtimeapi.AuthConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	if err := f.fail("PullImage", image); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.Missing, image)
	return "sha256:" + image, nil
}

// ListImages implements Images; the fake lists none.
func (f *Fake) ListImages(context.Context) ([]*runtimeapi.Image, error) { return nil, nil }

// RemoveImage implements Images.
func (f *Fake) RemoveImage(_ context.Context, image string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Missing == nil {
		f.Missing = map[string]bool{}
	}
	f.Missing[image] = true
	return nil
}

// ImageFilesystems implements Images; the fake has none.
func (f *Fake) ImageFilesystems(context.Context) ([]*runtimeapi.FilesystemUsage, error) {
	return nil, nil
}
