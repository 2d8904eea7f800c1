package volumes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"

	"weft.dev/weft/agent/volumes/downward"
)

// payload is the content of a projected volume: files by path relative to the volume.
type payload = map[string]volumeutil.FileProjection

// defaultMode is the mode of projected files if the volume does not say (the API server sets it).
const defaultMode = int32(corev1.ConfigMapVolumeSourceDefaultMode)

// privateMode is the mode of a token or key whose readers are known by fsGroup or runAsUser. Any other is readable as the volume says.
const privateMode = int32(0o600)

// collect returns the files of one of the four kinds of volume that are made of API objects.
func (m *Manager) collect(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (payload, error) {
	switch {
	case v.ConfigMap != nil:
		return m.configMapFiles(ctx, pod, v.ConfigMap.Name, v.ConfigMap.Items, modeOf(v.ConfigMap.DefaultMode), v.ConfigMap.Optional)
	case v.Secret != nil:
		return m.secretFiles(ctx, pod, v.Secret.SecretName, v.Secret.Items, modeOf(v.Secret.DefaultMode), v.Secret.Optional)
	case v.DownwardAPI != nil:
		return m.downwardFiles(pod, v.DownwardAPI.Items, modeOf(v.DownwardAPI.DefaultMode))
	default:
		return m.projectedFiles(ctx, pod, v)
	}
}

// projectedFiles joins the files of all sources; a later source wins over an earlier one with the same path. All sources are
// tried, so that the user sees every fault at once.
func (m *Manager) projectedFiles(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (payload, error) {
	mode := modeOf(v.Projected.DefaultMode)
	files := payload{}
	var failed []error
	for i := range v.Projected.Sources {
		part, err := m.sourceFiles(ctx, pod, v, i, mode)
		maps.Copy(files, part)
		failed = append(failed, err)
	}
	return files, errors.Join(failed...)
}

func (m *Manager) sourceFiles(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, index int, mode int32) (payload, error) {
	source := &v.Projected.Sources[index]
	switch {
	case source.ConfigMap != nil:
		return m.configMapFiles(ctx, pod, source.ConfigMap.Name, source.ConfigMap.Items, mode, source.ConfigMap.Optional)
	case source.Secret != nil:
		return m.secretFiles(ctx, pod, source.Secret.Name, source.Secret.Items, mode, source.Secret.Optional)
	case source.DownwardAPI != nil:
		return m.downwardFiles(pod, source.DownwardAPI.Items, mode)
	case source.ServiceAccountToken != nil:
		token, err := m.tokens.get(ctx, pod, source.ServiceAccountToken)
		if err != nil {
			return nil, err
		}
		return payload{source.ServiceAccountToken.Path: privateFile(pod, []byte(token), mode)}, nil
	case source.ClusterTrustBundle != nil:
		anchors, err := m.objects.trust.anchors(ctx, source.ClusterTrustBundle)
		if err != nil {
			return nil, err
		}
		return payload{source.ClusterTrustBundle.Path: privateFile(pod, anchors, mode)}, nil
	case source.PodCertificate != nil:
		issued, err := m.certificates.get(ctx, pod, certificateKey{pod.UID, v.Name, index}, source.PodCertificate)
		if err != nil {
			return nil, err
		}
		files := payload{}
		for path, data := range map[string][]byte{
			source.PodCertificate.CredentialBundlePath: slices.Concat(issued.key, issued.chain),
			source.PodCertificate.KeyPath:              issued.key,
			source.PodCertificate.CertificateChainPath: issued.chain,
		} {
			if path != "" {
				files[path] = privateFile(pod, data, mode)
			}
		}
		return files, nil
	default:
		return nil, fmt.Errorf("projected.sources[%d]: names no source", index)
	}
}

// privateFile is a file that only the pod's user or group may read, if they are known.
func privateFile(pod *corev1.Pod, data []byte, mode int32) volumeutil.FileProjection {
	file := volumeutil.FileProjection{Data: data, Mode: mode, FsUser: volumeutil.FsUserFrom(pod)}
	if file.FsUser != nil || fsGroup(pod) != nil {
		file.Mode = privateMode
	}
	return file
}

func (m *Manager) configMapFiles(ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, mode int32, optional *bool) (payload, error) {
	data := map[string][]byte{}
	cm, err := m.objects.ConfigMap(ctx, pod.Namespace, name)
	switch {
	case err == nil:
		for key, value := range cm.Data {
			data[key] = []byte(value)
		}
		maps.Copy(data, cm.BinaryData)
	case !isTrue(optional) || !apierrors.IsNotFound(err):
		return nil, err
	}
	return pick(data, items, mode, isTrue(optional), "configmap references non-existent config key: %s")
}

func (m *Manager) secretFiles(ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, mode int32, optional *bool) (payload, error) {
	var data map[string][]byte
	secret, err := m.objects.Secret(ctx, pod.Namespace, name)
	switch {
	case err == nil:
		data = secret.Data
	case !isTrue(optional) || !apierrors.IsNotFound(err):
		return nil, err
	}
	return pick(data, items, mode, isTrue(optional), "references non-existent secret key: %s")
}

// pick lays out the keys of an object as files: all of them, or those that items name.
func pick(data map[string][]byte, items []corev1.KeyToPath, mode int32, optional bool, missing string) (payload, error) {
	files := make(payload, len(data))
	if len(items) == 0 {
		for key, value := range data {
			files[key] = volumeutil.FileProjection{Data: value, Mode: mode}
		}
		return files, nil
	}
	for _, item := range items {
		value, ok := data[item.Key]
		if !ok && optional {
			continue
		}
		if !ok {
			return nil, fmt.Errorf(missing, item.Key)
		}
		files[item.Path] = volumeutil.FileProjection{Data: value, Mode: modeOr(item.Mode, mode)}
	}
	return files, nil
}

func (m *Manager) downwardFiles(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode int32) (payload, error) {
	files := make(payload, len(items))
	var failed []error
	for _, item := range items {
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = downward.FieldRef(item.FieldRef, pod, downward.Addresses{})
		case item.ResourceFieldRef != nil:
			value, err = downward.ResourceFieldRef(item.ResourceFieldRef, pod, nil, m.cfg.Allocatable())
		default:
			err = fmt.Errorf("downwardAPI item %q names neither fieldRef nor resourceFieldRef", item.Path)
		}
		failed = append(failed, err)
		files[filepath.Clean(item.Path)] = volumeutil.FileProjection{Data: []byte(value), Mode: modeOr(item.Mode, mode)}
	}
	return files, errors.Join(failed...)
}

// unsupported is the error for a field of a volume that Weft does not implement.
func unsupported(field string, args ...any) error {
	return fmt.Errorf("%s is not supported by Weft", fmt.Sprintf(field, args...))
}

func modeOf(mode *int32) int32 { return modeOr(mode, defaultMode) }

func modeOr(mode *int32, otherwise int32) int32 {
	if mode != nil {
		return *mode
	}
	return otherwise
}

func isTrue(b *bool) bool { return b != nil && *b }
