package pods

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/cri"
)

// wantedImage is an image that a container, or a volume of it, needs.
type wantedImage struct {
	reference string
	policy    corev1.PullPolicy
	container *corev1.Container // for events
}

// image makes an image present by its pull policy and returns it.
func (w *worker) image(ctx context.Context, pod *corev1.Pod, wanted wantedImage, config *runtimeapi.PodSandboxConfig) (*runtimeapi.Image, error) {
	named, err := reference.ParseNormalizedNamed(wanted.reference)
	if err != nil {
		err = fmt.Errorf("couldn't parse image name %q: %w", wanted.reference, err)
		w.warn(pod, wanted.container, eventInspectFailed, fmt.Sprintf("Failed to apply default image tag %q: %v", wanted.reference, err))
		return nil, failed(reasonInvalidImageName, err)
	}
	name := wanted.reference
	if reference.IsNameOnly(named) {
		name += ":latest"
	}
	present, err := w.m.cfg.Images.ImageStatus(ctx, name)
	if err != nil {
		w.warn(pod, wanted.container, eventInspectFailed, fmt.Sprintf("Failed to inspect image %q: %s", wanted.reference, cri.Message(err)))
		return nil, failed(reasonImageInspectError, fmt.Errorf("failed to inspect image %q: %s", wanted.reference, cri.Message(err)))
	}
	switch {
	case present != nil && wanted.policy != corev1.PullAlways:
		w.event(pod, wanted.container, eventPulled, fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", wanted.reference))
		return present, nil
	case wanted.policy == corev1.PullNever:
		message := fmt.Sprintf("Container image %q is not present with pull policy of Never", wanted.reference)
		w.warn(pod, wanted.container, reasonErrImageNeverPull, message)
		return nil, failed(reasonErrImageNeverPull, errors.New(message))
	}
	return w.pull(ctx, pod, wanted, name, config)
}

// pull fetches an image, with each of the pod's credentials that fit in turn.
func (w *worker) pull(ctx context.Context, pod *corev1.Pod, wanted wantedImage, name string, config *runtimeapi.PodSandboxConfig) (*runtimeapi.Image, error) {
	w.event(pod, wanted.container, eventPulling, fmt.Sprintf("Pulling image %q", wanted.reference))
	begun := time.Now()
	var pullErr error
	for _, auth := range append(w.credentials(ctx, pod, name), nil) {
		id, err := w.m.cfg.Images.PullImage(ctx, name, auth, config)
		if err != nil {
			pullErr = err
			continue
		}
		image, err := w.m.cfg.Images.ImageStatus(ctx, id)
		if err != nil || image == nil {
			return nil, failed(reasonImageInspectError, fmt.Errorf("image %q was pulled as %s, which the runtime does not find: %v", wanted.reference, id, err))
		}
		took := time.Since(begun).Truncate(time.Millisecond)
		w.event(pod, wanted.container, eventPulled, fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.", wanted.reference, took, took, image.Size))
		return image, nil
	}
	message := fmt.Sprintf("failed to pull image %q: %s", wanted.reference, cri.Message(pullErr))
	w.warn(pod, wanted.container, eventFailed, strings.ToUpper(message[:1])+message[1:])
	w.warn(pod, wanted.container, eventFailed, "Error: "+reasonErrImagePull)
	return nil, failed(reasonErrImagePull, errors.New(message))
}

// credentials are those of the pod's imagePullSecrets that fit the image. A
// Secret that is missing or malformed counts as none, as in kubelet.
func (w *worker) credentials(ctx context.Context, pod *corev1.Pod, image string) []*runtimeapi.AuthConfig {
	var out []*runtimeapi.AuthConfig
	for _, ref := range pod.Spec.ImagePullSecrets {
		secret, err := w.m.cfg.Objects.Secret(ctx, pod.Namespace, ref.Name)
		if err != nil {
			w.log.Info("image pull secret is not available", "secret", ref.Name, "err", err)
			continue
		}
		entries, err := dockerEntries(secret)
		if err != nil {
			w.log.Info("image pull secret is malformed", "secret", ref.Name, "err", err)
			continue
		}
		for registry, entry := range entries {
			if registryMatches(registry, image) {
				out = append(out, entry.auth())
			}
		}
	}
	return out
}

// dockerEntry is one registry's credentials in Docker's configuration file.
type dockerEntry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"` // base64 of "username:password"
	IdentityToken string `json:"identitytoken"`
}

func (e dockerEntry) auth() *runtimeapi.AuthConfig {
	if e.Username == "" && e.Auth != "" {
		if plain, err := base64.StdEncoding.DecodeString(e.Auth); err == nil {
			e.Username, e.Password, _ = strings.Cut(string(plain), ":")
		}
	}
	return &runtimeapi.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken}
}

func dockerEntries(secret *corev1.Secret) (map[string]dockerEntry, error) {
	if data, ok := secret.Data[corev1.DockerConfigJsonKey]; ok {
		var file struct {
			Auths map[string]dockerEntry `json:"auths"`
		}
		err := json.Unmarshal(data, &file)
		return file.Auths, err
	}
	var entries map[string]dockerEntry
	err := json.Unmarshal(secret.Data[corev1.DockerConfigKey], &entries)
	return entries, err
}

// registryMatches reports whether credentials for a registry, written as
// "https://host/v1/", "host:port", "host/path" or "*.host", are for an image.
func registryMatches(registry, image string) bool {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return false
	}
	registry = strings.TrimPrefix(strings.TrimPrefix(registry, "https://"), "http://")
	host, prefix, _ := strings.Cut(strings.Trim(registry, "/"), "/")
	if prefix == "v1" || prefix == "v2" {
		prefix = ""
	}
	if host == "index.docker.io" {
		host = "docker.io"
	}
	matched, err := path.Match(host, reference.Domain(named))
	if err != nil || !matched {
		return false
	}
	repository := reference.Path(named)
	return prefix == "" || repository == prefix || strings.HasPrefix(repository, prefix+"/")
}
