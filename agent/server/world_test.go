package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"weft.dev/weft/agent/pods"
)

// world is a node API with one pod, "web" in namespace "default", whose
// containers are "app" (running), "old" (restarted once), "new" (not started
// yet) and "debug" (ephemeral).
type world struct {
	*fakeRuntime
	server *Server
	http   *httptest.Server
	pod    *corev1.Pod
	dir    string

	mu      sync.Mutex
	granted map[string]bool // "user verb subresource"
	down    bool            // the API server does not answer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{fakeRuntime: newFakeRuntime(t), dir: t.TempDir(), granted: map[string]bool{}}
	w.pod = &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "uid-web"},
		Spec: corev1.PodSpec{
			Containers:          []corev1.Container{{Name: "app"}, {Name: "old"}, {Name: "new"}},
			EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}},
		},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
			{Name: "app", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
			{Name: "old", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}},
			{Name: "new", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}},
		}},
	}
	for name, text := range map[string]string{"app/0.log": "app", "old/0.log": "old first", "old/1.log": "old second", "debug/0.log": "debug"} {
		path := filepath.Join(w.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("2026-01-01T00:00:01Z stdout F "+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	authority := newAuthority(t)
	var err error
	w.server, err = New(Config{
		NodeName: "n1", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Port: 1, Client: w.client(t), Pods: w, Runtime: w.fakeRuntime,
		Certificate: authority.certificate(t, "node"), ClientCAFile: authority.file(t), StateDir: w.dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.http = httptest.NewUnstartedServer(w.server.Handler())
	w.http.TLS = w.server.tlsConfig()
	w.http.StartTLS()
	t.Cleanup(w.http.Close)
	w.http.Client().Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return authority.certificate(t, "admin")(nil)
	}
	w.allow("admin get proxy", "admin create proxy", "admin get metrics", "admin get stats")
	return w
}

func (w *world) Pods() []*corev1.Pod { return []*corev1.Pod{w.pod} }

func (w *world) Pod(namespace, name string) (*corev1.Pod, bool) {
	return w.pod, namespace == w.pod.Namespace && name == w.pod.Name
}

func (w *world) Container(uid types.UID, name string) (pods.Container, bool) {
	c, ok := map[string]pods.Container{
		"app":   {ID: "c-app", SandboxID: "s-web", State: "running", LogPath: "app/0.log"},
		"old":   {ID: "c-old", SandboxID: "s-web", State: "exited", LogPath: "old/1.log", PreviousLogPath: "old/0.log"},
		"debug": {ID: "c-debug", SandboxID: "s-web", State: "running", LogPath: "debug/0.log"},
	}[name]
	c.LogPath = filepath.Join(w.dir, c.LogPath)
	if c.PreviousLogPath != "" {
		c.PreviousLogPath = filepath.Join(w.dir, c.PreviousLogPath)
	}
	return c, ok && uid == w.pod.UID
}

func (w *world) allow(grants ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range grants {
		w.granted[g] = true
	}
}

// client talks to an API server that knows token "t" as user "robot".
func (w *world) client(t *testing.T) kubernetes.Interface {
	t.Helper()
	api := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		body, err := io.ReadAll(r.Body)
		if w.down || err != nil {
			out.WriteHeader(http.StatusNotFound)
			return
		}
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
		if err != nil {
			out.WriteHeader(http.StatusBadRequest)
			return
		}
		switch review := object.(type) {
		case *authenticationv1.TokenReview:
			review.Status = authenticationv1.TokenReviewStatus{Authenticated: review.Spec.Token == "t", User: authenticationv1.UserInfo{Username: "robot"}}
		case *authorizationv1.SubjectAccessReview:
			a := review.Spec.ResourceAttributes
			review.Status.Allowed = a.Resource == "nodes" && a.Name == "n1" && w.granted[fmt.Sprintf("%s %s %s", review.Spec.User, a.Verb, a.Subresource)]
		}
		out.Header().Set("Content-Type", "application/json")
		out.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(out).Encode(object)
	}))
	t.Cleanup(api.Close)
	return kubernetes.NewForConfigOrDie(&rest.Config{Host: api.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
}

// get asks as "admin" and returns status and body.
func (w *world) get(t *testing.T, path string) (int, string) {
	t.Helper()
	response, err := w.http.Client().Get(w.http.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// authority signs certificates of servers and users.
type authority struct {
	certificateDER []byte
	parent         *x509.Certificate
	key            *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if a.certificateDER, err = x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key); err != nil {
		t.Fatal(err)
	}
	a.parent, _ = x509.ParseCertificate(a.certificateDER)
	return a
}

func (a *authority) file(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificateDER}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (a *authority) certificate(t *testing.T, name string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
	}
}

// fakeRuntime answers as a container runtime with a real streaming server:
// exec echoes its command and stdin, attach says hello, port-forward echoes.
type fakeRuntime struct {
	Runtime
	streaming streaming.Server
	mu        sync.Mutex
	exited    bool
}

func newFakeRuntime(t *testing.T) *fakeRuntime {
	t.Helper()
	r := &fakeRuntime{}
	var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { r.streaming.ServeHTTP(w, q) })
	backend := httptest.NewServer(handler)
	t.Cleanup(backend.Close)
	config := streaming.DefaultConfig
	base, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.BaseURL = base
	if r.streaming, err = streaming.NewServer(config, r.runtime()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *fakeRuntime) runtime() streaming.Runtime { return streamRuntime{} }

func (r *fakeRuntime) Exec(_ context.Context, in *runtimeapi.ExecRequest, _ ...grpc.CallOption) (*runtimeapi.ExecResponse, error) {
	return r.streaming.GetExec(in)
}

func (r *fakeRuntime) Attach(_ context.Context, in *runtimeapi.AttachRequest, _ ...grpc.CallOption) (*runtimeapi.AttachResponse, error) {
	return r.streaming.GetAttach(in)
}

func (r *fakeRuntime) PortForward(_ context.Context, in *runtimeapi.PortForwardRequest, _ ...grpc.CallOption) (*runtimeapi.PortForwardResponse, error) {
	return r.streaming.GetPortForward(in)
}

func (r *fakeRuntime) ExecSync(_ context.Context, in *runtimeapi.ExecSyncRequest, _ ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error) {
	return &runtimeapi.ExecSyncResponse{Stdout: []byte(strings.Join(in.Cmd, ","))}, nil
}

func (r *fakeRuntime) ContainerStatus(_ context.Context, in *runtimeapi.ContainerStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if in.ContainerId != "c-app" || r.exited {
		return nil, status.Error(codes.NotFound, "no such container")
	}
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}, nil
}

func (r *fakeRuntime) exit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exited = true
}

func (r *fakeRuntime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: "s-web", Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "uid-web"}}}}, nil
}

func (r *fakeRuntime) ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{Id: "c-app", PodSandboxId: "s-web", CreatedAt: 1e9}}}, nil
}

func (r *fakeRuntime) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: []*runtimeapi.PodSandboxStats{{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: "s-web"},
		Linux:      &runtimeapi.LinuxPodSandboxStats{Cpu: cpuUsage(5), Memory: memoryUsage(500)},
	}}}, nil
}

func (r *fakeRuntime) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest, ...grpc.CallOption) (*runtimeapi.ListContainerStatsResponse, error) {
	gone := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: "c-gone"}}
	app := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: "c-app", Metadata: &runtimeapi.ContainerMetadata{Name: "app"}}, Cpu: cpuUsage(3), Memory: memoryUsage(300)}
	return &runtimeapi.ListContainerStatsResponse{Stats: []*runtimeapi.ContainerStats{gone, app}}, nil
}

func cpuUsage(seconds uint64) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{Timestamp: 1, UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: seconds * 1e9}}
}

func memoryUsage(bytes uint64) *runtimeapi.MemoryUsage {
	return &runtimeapi.MemoryUsage{Timestamp: 1, WorkingSetBytes: &runtimeapi.UInt64Value{Value: bytes}}
}

type streamRuntime struct{}

func (streamRuntime) Exec(_ context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, _ <-chan remotecommand.TerminalSize) error {
	fmt.Fprintf(out, "%s %v tty=%v ", id, cmd, tty)
	if in != nil {
		_, _ = io.Copy(out, in)
	}
	if errOut != nil {
		fmt.Fprint(errOut, "to stderr")
	}
	return nil
}

func (streamRuntime) Attach(_ context.Context, id string, _ io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	fmt.Fprintf(out, "hello from %s", id)
	return nil
}

func (streamRuntime) PortForward(_ context.Context, sandbox string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	fmt.Fprintf(stream, "%s:%d ", sandbox, port)
	_, err := io.CopyN(stream, stream, 4)
	return err
}
