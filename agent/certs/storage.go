package certs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/caddyserver/certmagic"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

const (
	// storageLabel marks our Secrets.
	storageLabel = "weft.dev/certificate-storage"
	// directoryAnnotation says which directory a Secret is.
	directoryAnnotation = "weft.dev/certificate-directory"
)

// storage implements certmagic.Storage: a directory is a Secret and a file in
// it one of its keys, so a certificate with its key is one object.
type storage struct {
	*locker
	client    kubernetes.Interface
	namespace string
}

var _ certmagic.Storage = (*storage)(nil)

func newStorage(client kubernetes.Interface, namespace, node string) *storage {
	return &storage{locker: newLocker(client, namespace, node), client: client, namespace: namespace}
}

// objectName returns a valid name for any text, with a part of it readable.
func objectName(prefix, text string) string {
	sum := sha256.Sum256([]byte(text))
	readable := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, strings.ToLower(path.Base(text)))
	readable = strings.Trim(strings.ReplaceAll(readable, "..", "."), "-.")
	if len(readable) > 100 {
		readable = strings.Trim(readable[:100], "-.")
	}
	name := prefix + "-" + hex.EncodeToString(sum[:8])
	if readable != "" {
		name += "-" + strings.ReplaceAll(readable, ".", "-")
	}
	return name
}

func (s *storage) get(ctx context.Context, directory string) (*corev1.Secret, error) {
	return s.client.CoreV1().Secrets(s.namespace).Get(ctx, objectName("certificate", directory), metav1.GetOptions{})
}

// Store implements certmagic.Storage.
func (s *storage) Store(ctx context.Context, key string, value []byte) error {
	directory, file := path.Split(key)
	directory = strings.TrimSuffix(directory, "/")
	secrets := s.client.CoreV1().Secrets(s.namespace)
	return retry.OnError(retry.DefaultBackoff, isRace, func() error {
		secret, err := s.get(ctx, directory)
		if apierrors.IsNotFound(err) {
			_, err = secrets.Create(ctx, &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{
					Name:        objectName("certificate", directory),
					Labels:      map[string]string{storageLabel: "true"},
					Annotations: map[string]string{directoryAnnotation: directory},
				},
				Data: map[string][]byte{file: value},
			}, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		secret = secret.DeepCopy()
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		secret.Data[file] = value
		_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
		return err
	})
}

func isRace(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err)
}

// Load implements certmagic.Storage.
func (s *storage) Load(ctx context.Context, key string) ([]byte, error) {
	directory, file := path.Split(key)
	secret, err := s.get(ctx, strings.TrimSuffix(directory, "/"))
	if apierrors.IsNotFound(err) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	value, ok := secret.Data[file]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return value, nil
}

// Delete implements certmagic.Storage.
func (s *storage) Delete(ctx context.Context, key string) error {
	if err := s.deleteFile(ctx, key); err != nil {
		return err
	}
	all, err := s.list(ctx)
	if err != nil {
		return err
	}
	for _, secret := range all {
		if !isBelow(secret.Annotations[directoryAnnotation], key) {
			continue
		}
		err := s.client.CoreV1().Secrets(s.namespace).Delete(ctx, secret.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func (s *storage) deleteFile(ctx context.Context, key string) error {
	directory, file := path.Split(key)
	secrets := s.client.CoreV1().Secrets(s.namespace)
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		secret, err := s.get(ctx, strings.TrimSuffix(directory, "/"))
		if apierrors.IsNotFound(err) {
			return nil
		}
		if _, ok := secret.Data[file]; err != nil || !ok {
			return err
		}
		secret = secret.DeepCopy()
		delete(secret.Data, file)
		if len(secret.Data) == 0 {
			version := metav1.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion}
			err = secrets.Delete(ctx, secret.Name, metav1.DeleteOptions{Preconditions: &version})
		} else {
			_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
		}
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// Exists implements certmagic.Storage.
func (s *storage) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

// List implements certmagic.Storage.
func (s *storage) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	all, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, secret := range all {
		for file := range secret.Data {
			key := path.Join(secret.Annotations[directoryAnnotation], file)
			if !isBelow(key, prefix) {
				continue
			}
			addListed(found, strings.TrimSuffix(prefix, "/"), key, recursive)
		}
	}
	if len(found) == 0 {
		return nil, fs.ErrNotExist
	}
	keys := make([]string, 0, len(found))
	for key := range found {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys, nil
}

// addListed adds key and the directories between prefix and it, or only the
// one directly below prefix.
func addListed(found map[string]bool, prefix, key string, recursive bool) {
	for at := key; at != "." && at != prefix; at = path.Dir(at) {
		parent := path.Dir(at)
		if recursive || parent == prefix || parent == "." && prefix == "" {
			found[at] = true
		}
	}
}

// isBelow reports whether key is prefix or in it, element by element.
func isBelow(key, prefix string) bool {
	prefix = strings.TrimSuffix(prefix, "/")
	return prefix == "" || key == prefix || strings.HasPrefix(key, prefix+"/")
}

// Stat implements certmagic.Storage.
func (s *storage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	value, err := s.Load(ctx, key)
	if err == nil {
		return certmagic.KeyInfo{Key: key, Size: int64(len(value)), IsTerminal: true}, nil
	}
	if _, listErr := s.List(ctx, key, false); listErr != nil {
		return certmagic.KeyInfo{}, err
	}
	return certmagic.KeyInfo{Key: key}, nil
}

func (s *storage) list(ctx context.Context) ([]corev1.Secret, error) {
	list, err := s.client.CoreV1().Secrets(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: storageLabel + "=true"})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}
