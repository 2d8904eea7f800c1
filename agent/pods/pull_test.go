package pods

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/agent/cri/critest"
)

// privateRegistry serves one image under one tag, over HTTP on loopback, to
// who knows the password (OCI distribution specification, "Pull").
type privateRegistry struct {
	t    *testing.T
	host string

	mu    sync.Mutex
	image v1.Image
}

const registryUser, registryPassword = "robot", "secret"

func newPrivateRegistry(t *testing.T) *privateRegistry {
	t.Helper()
	r := &privateRegistry{t: t}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// push stores an image of busybox that prints a word and waits.
func (r *privateRegistry) push(word string) (image string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.image = critest.BusyboxImage(r.t, "sh", "-c", "echo "+word+"; exec sleep 1000")
	return r.host + "/team/app:1"
}

func (r *privateRegistry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	if user, password, _ := request.BasicAuth(); user != registryUser || password != registryPassword {
		w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	r.mu.Lock()
	image := r.image
	r.mu.Unlock()
	kind, content, err := registryContent(image, request.URL.Path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", fmt.Sprint(len(content)))
	if request.Method != http.MethodHead {
		w.Write(content)
	}
}

func registryContent(image v1.Image, path string) (mediaType string, content []byte, err error) {
	kind, id := filepath.Split(strings.TrimPrefix(path, "/v2/team/app/"))
	digest, err := image.Digest()
	if err != nil {
		return "", nil, err
	}
	config, err := image.ConfigName()
	if err != nil {
		return "", nil, err
	}
	switch {
	case kind == "manifests/" && (id == "1" || id == digest.String()):
		manifest, err := image.RawManifest()
		mediaType, typeErr := image.MediaType()
		return string(mediaType), manifest, errors.Join(err, typeErr)
	case kind == "blobs/" && id == config.String():
		content, err := image.RawConfigFile()
		return "application/octet-stream", content, err
	case kind == "blobs/":
		hash, err := v1.NewHash(id)
		if err != nil {
			return "", nil, err
		}
		layer, err := image.LayerByDigest(hash)
		if err != nil {
			return "", nil, err
		}
		stream, err := layer.Compressed()
		if err != nil {
			return "", nil, err
		}
		defer stream.Close()
		content, err := io.ReadAll(stream)
		return "application/octet-stream", content, err
	}
	return "", nil, fmt.Errorf("%s is not here", path)
}

// secret holds the registry's password as kubectl create secret docker-registry
// writes it.
func (r *privateRegistry) secret() *corev1.Secret {
	r.t.Helper()
	file, err := json.Marshal(map[string]any{"auths": map[string]any{
		r.host: map[string]string{"username": registryUser, "password": registryPassword}}})
	if err != nil {
		r.t.Fatal(err)
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "pull"},
		Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: file}}
}

func TestImagesArePulledByPolicyWithThePodsSecrets(t *testing.T) {
	n, r := newRealNode(t), newPrivateRegistry(t)
	image := r.push("first")
	pods := 0
	run := func(policy, more string) *corev1.Pod {
		t.Helper()
		pod := podFrom(t, "spec: {hostNetwork: true, containers: [{name: app, image: \""+image+"\", imagePullPolicy: "+policy+"}]"+more+"}")
		pods++
		pod.UID = types.UID(fmt.Sprintf("uid-%d", pods)) // another pod of the same name
		if _, err := n.client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		return n.eventually("runs or cannot pull", func(p *corev1.Pod) bool {
			if p == nil || len(p.Status.ContainerStatuses) == 0 {
				return false
			}
			s := p.Status.ContainerStatuses[0].State
			return s.Running != nil || s.Waiting != nil && s.Waiting.Reason == reasonErrImagePull
		})
	}
	imageID := func(p *corev1.Pod) string {
		t.Helper()
		if p.Status.ContainerStatuses[0].State.Running == nil {
			t.Fatalf("the pod does not run: %s", printStatus(&p.Status))
		}
		return p.Status.ContainerStatuses[0].ImageID
	}
	const withSecret = ", imagePullSecrets: [{name: pull}]"

	refused := run("IfNotPresent", "")
	if w := refused.Status.ContainerStatuses[0].State.Waiting; w == nil || !strings.Contains(w.Message, "authorization failed") {
		t.Errorf("without the secret: %s", printStatus(&refused.Status))
	}
	n.delete()
	if _, err := n.client.CoreV1().Secrets("default").Create(t.Context(), r.secret(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	first := imageID(run("IfNotPresent", withSecret))
	n.delete()

	r.push("second") // under the same tag
	if got := imageID(run("IfNotPresent", withSecret)); got != first {
		t.Errorf("IfNotPresent took %s though %s is present", got, first)
	}
	n.delete()
	second := imageID(run("Always", withSecret))
	if second == first {
		t.Error("Always did not ask the registry")
	}
	n.delete()
	if got := imageID(run("Never", withSecret)); got != second {
		t.Errorf("Never took %s, want %s that is present", got, second)
	}
	n.delete()
	n.wantNothingLeft()
}
