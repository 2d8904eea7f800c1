package ingress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"weft.dev/weft/agent/certs"
	"weft.dev/weft/controlplane/api"
)

// cluster is a fake API server with one node that runs the ingress.
type cluster struct {
	t           *testing.T
	client      *fake.Clientset
	http, https string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, client: fake.NewClientset(), http: freeAddress(t), https: freeAddress(t)}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	node.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "n1"},
		{Type: corev1.NodeInternalIP, Address: "172.30.0.10"},
		{Type: corev1.NodeInternalIP, Address: "172.30.0.9"},
	}
	must(t)(c.client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}))
	class := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: api.IngressClassName}}
	class.Spec.Controller = api.IngressController
	must(t)(c.client.NetworkingV1().IngressClasses().Create(t.Context(), class, metav1.CreateOptions{}))

	factory := informers.NewSharedInformerFactory(c.client, 0)
	component, err := New(Config{NodeName: "n1", Client: c.client, Cluster: factory, HTTPAddress: c.http, HTTPSAddress: c.https})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	done := make(chan error, 1)
	go func() { done <- component.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		factory.Shutdown()
	})
	return c
}

func must(t *testing.T) func(any, error) {
	t.Helper()
	return func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// addService makes a Service whose one endpoint answers with its name.
func (c *cluster) addService(name string) {
	c.t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) }))
	c.t.Cleanup(server.Close)
	_, text, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		c.t.Fatal(err)
	}
	number, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		c.t.Fatal(err)
	}
	port, portName := int32(number), "http"
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	service.Spec.Ports = []corev1.ServicePort{{Name: portName, Port: 80, TargetPort: intstr.FromInt32(port)}}
	must(c.t)(c.client.CoreV1().Services("default").Create(c.t.Context(), service, metav1.CreateOptions{}))
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}}},
	}
	must(c.t)(c.client.DiscoveryV1().EndpointSlices("default").Create(c.t.Context(), slice, metav1.CreateOptions{}))
}

func (c *cluster) addIngress(host, service string, tlsBlocks ...networkingv1.IngressTLS) {
	c.t.Helper()
	class, pathType := api.IngressClassName, networkingv1.PathTypePrefix
	ingress := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service, UID: types.UID(service)}}
	ingress.Spec = networkingv1.IngressSpec{IngressClassName: &class, TLS: tlsBlocks, Rules: []networkingv1.IngressRule{{
		Host: host,
		IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{
			Path: "/", PathType: &pathType,
			Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: service, Port: networkingv1.ServiceBackendPort{Number: 80}}},
		}}}},
	}}}
	must(c.t)(c.client.NetworkingV1().Ingresses("default").Create(c.t.Context(), ingress, metav1.CreateOptions{}))
}

// get asks for url with a client that resolves every name to the node and
// trusts what the node's CA has signed.
func (c *cluster) get(url string) (status int, body string, location string, err error) {
	roots := x509.NewCertPool()
	published, err := c.client.CoreV1().ConfigMaps(api.SystemNamespace).Get(c.t.Context(), certs.AuthorityName, metav1.GetOptions{})
	if err == nil {
		roots.AppendCertsFromPEM([]byte(published.Data[certs.AuthorityKey]))
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			target := c.http
			if strings.HasSuffix(address, ":443") {
				target = c.https
			}
			return (&net.Dialer{}).DialContext(ctx, network, target)
		},
	}
	response, err := transport.RoundTrip(must1(http.NewRequestWithContext(c.t.Context(), "GET", url, nil)))
	if err != nil {
		return 0, "", "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), response.Header.Get("Location"), err
}

func must1(r *http.Request, err error) *http.Request {
	if err != nil {
		panic(err)
	}
	return r
}

// eventually repeats check until it returns "", and fails with what it
// returned last.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		problem := check()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(problem)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *cluster) expect(url string, status int, body string) {
	c.t.Helper()
	eventually(c.t, func() string {
		gotStatus, gotBody, _, err := c.get(url)
		if gotStatus == status && gotBody == body {
			return ""
		}
		return fmt.Sprintf("%s: status %d, body %q, %v; want %d, %q", url, gotStatus, gotBody, err, status, body)
	})
}

func TestPlainIngressServesAndFollowsItsEndpoints(t *testing.T) {
	c := newCluster(t)
	c.addIngress("web.test", "web")
	c.expect("http://web.test/", 503, "the route has no backend\n")
	c.addService("web")
	c.expect("http://web.test/", 200, "web")
	if status, _, _, _ := c.get("http://other.test/"); status != 404 {
		t.Errorf("an unknown host has status %d", status)
	}
	if err := c.client.DiscoveryV1().EndpointSlices("default").Delete(t.Context(), "web-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.expect("http://web.test/", 503, "no endpoint is ready\n")
}

func TestTLSIngressGetsACertificateIssued(t *testing.T) {
	c := newCluster(t)
	c.addService("web")
	c.addIngress("web.test", "web", networkingv1.IngressTLS{Hosts: []string{"web.test"}, SecretName: "absent"})
	c.expect("https://web.test/", 200, "web")
	status, _, location, err := c.get("http://web.test/x?y")
	_, port, _ := net.SplitHostPort(c.https)
	if want := "https://web.test:" + port + "/x?y"; status != 308 || location != want {
		t.Errorf("plain HTTP: status %d, location %s (%v), want %s", status, location, err, want)
	}
}

func TestNamedSecretReplacesTheIssuedCertificateWhenItAppears(t *testing.T) {
	c := newCluster(t)
	c.addService("web")
	c.addIngress("web.test", "web", networkingv1.IngressTLS{Hosts: []string{"web.test"}, SecretName: "web-tls"})
	c.expect("https://web.test/", 200, "web")
	pair := httptest.NewUnstartedServer(nil)
	pair.StartTLS()
	t.Cleanup(pair.Close)
	own := pair.TLS.Certificates[0]
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-tls"}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: certPEM(own), corev1.TLSPrivateKeyKey: keyPEM(t, own)},
	}
	must(t)(c.client.CoreV1().Secrets("default").Create(t.Context(), secret, metav1.CreateOptions{}))
	serves := func() *x509.Certificate {
		conn, err := tls.Dial("tcp", c.https, &tls.Config{ServerName: "web.test", InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0]
	}
	eventually(t, func() string {
		if leaf := serves(); !leaf.Equal(pair.Certificate()) {
			return "the server still shows " + leaf.Subject.String()
		}
		return ""
	})
	if err := c.client.CoreV1().Secrets("default").Delete(t.Context(), "web-tls", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.expect("https://web.test/", 200, "web")
}

func TestStatusListsNodesAndEventsNameTheField(t *testing.T) {
	c := newCluster(t)
	c.addIngress("web.test", "missing")
	eventually(t, func() string {
		ingress, err := c.client.NetworkingV1().Ingresses("default").Get(t.Context(), "missing", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, address := range ingress.Status.LoadBalancer.Ingress {
			got = append(got, address.IP)
		}
		if strings.Join(got, " ") == "172.30.0.9 172.30.0.10" {
			return ""
		}
		return fmt.Sprint("status lists ", got)
	})
	eventually(t, func() string {
		events, err := c.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, event := range events.Items {
			if event.Reason == ReasonServiceNotFound && strings.Contains(event.Message, "spec.rules[0].http.paths[0].backend.service.name") {
				return ""
			}
		}
		return fmt.Sprint("events are ", events.Items)
	})
}

func TestOneNodeReportsOnEachIngress(t *testing.T) {
	nodes := readyNodes([]*corev1.Node{readyNode("b"), readyNode("a"), readyNode("c"), {ObjectMeta: metav1.ObjectMeta{Name: "not-ready"}}})
	seen := map[string]int{}
	for i := range 300 {
		seen[reporterOf(types.UID(fmt.Sprint(i)), nodes)]++
	}
	if len(seen) != 3 || seen["a"] < 50 || seen["b"] < 50 || seen["c"] < 50 {
		t.Errorf("reports are shared as %v", seen)
	}
}

func readyNode(name string) *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	return node
}

func certPEM(pair tls.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
}

func keyPEM(t *testing.T, pair tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
