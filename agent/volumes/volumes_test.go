package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// node is a Manager at work in a directory of its own, over an API server in memory.
type node struct {
	*Manager
	t      *testing.T
	client *fake.Clientset
	dir    string
	local  *LocalDirs
	stop   func() // what Run does; may be called twice

	mu       sync.Mutex
	tokens   int
	lifetime time.Duration
}

func newNode(t *testing.T, objects ...runtime.Object) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting and changing owners needs root")
	}
	n := &node{t: t, client: fake.NewClientset(objects...), dir: t.TempDir(), lifetime: time.Hour}
	n.client.PrependReactor("create", "serviceaccounts", n.grantToken)
	log := slog.New(slog.DiscardHandler)
	watched, err := NewObjects(ObjectsConfig{Client: n.client, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if n.local, err = NewLocalDirs(filepath.Join(t.TempDir(), "volumes")); err != nil {
		t.Fatal(err)
	}
	manager, err := New(Config{
		NodeName: "n1", KubeletDir: n.dir, Client: n.client, Objects: watched, Local: n.local, Log: log,
		Allocatable: func() corev1.ResourceList {
			return corev1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("1Gi")}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Manager = manager
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = watched.Run(ctx) })
	running.Go(func() { _ = manager.Run(ctx) })
	n.stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(func() {
		n.stop()
		n.unmountAll()
	})
	return n
}

func (n *node) unmountAll() {
	uids, err := n.Orphans()
	if err != nil {
		n.t.Error(err)
	}
	for _, uid := range uids {
		if err := n.Unmount(context.Background(), uid); err != nil {
			n.t.Error(err)
		}
	}
}

func (n *node) grantToken(action clienttesting.Action) (bool, runtime.Object, error) {
	request, ok := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest)
	if !ok {
		return false, nil, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tokens++
	granted := request.DeepCopy()
	granted.Status.Token = fmt.Sprintf("token %d for %s %v %d s", n.tokens, request.Spec.BoundObjectRef.Name, request.Spec.Audiences, *request.Spec.ExpirationSeconds)
	granted.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(n.lifetime))
	return true, granted, nil
}

// mount mounts a pod's volumes and returns where they are.
func (n *node) mount(pod *corev1.Pod) map[string]Mount {
	n.t.Helper()
	mounts, err := n.Mount(n.t.Context(), pod)
	if err != nil {
		n.t.Fatal(err)
	}
	return mounts
}

// mountError mounts a pod's volumes and returns the message of the failure.
func (n *node) mountError(pod *corev1.Pod) string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 2*time.Second)
	defer cancel()
	_, err := n.Mount(ctx, pod)
	if err == nil {
		n.t.Fatal("no error")
	}
	return err.Error()
}

// podWith returns a pod whose only container mounts the volumes, each at /NAME.
func podWith(volumes ...corev1.Volume) *corev1.Pod {
	c := corev1.Container{Name: "app"}
	for _, v := range volumes {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: v.Name, MountPath: "/" + v.Name})
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "11-22", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{c}, Volumes: volumes, ServiceAccountName: "robot"},
	}
}

func volume(source corev1.VolumeSource) corev1.Volume {
	return corev1.Volume{Name: "v", VolumeSource: source}
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("cm-" + name)}, Data: data}
}

func secret(name string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

func configMapVolume(name string) corev1.Volume {
	return volume(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}})
}

// tree prints the visible files of a volume: mode, owner, group, path and content.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	add := func(path string) {
		info, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			return // replaced meanwhile by a live update
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		rel, _ := filepath.Rel(dir, path)
		lines = append(lines, fmt.Sprintf("%s %d:%d %s=%s", info.Mode(), stat.Uid, stat.Gid, rel, content))
	}
	var walk func(string)
	walk = func(d string) {
		entries, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(d, e.Name())
			if strings.HasPrefix(e.Name(), "..") {
				continue
			}
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				walk(path)
				continue
			}
			add(path)
		}
	}
	walk(dir)
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// eventually waits for a condition that follows from work in the background.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

func ptr[T any](v T) *T { return &v }
