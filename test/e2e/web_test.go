package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// web is the manifest of a web application behind a ClusterIP, a NodePort and
// an ingress with the host NAMESPACE.weft.local.
func web(ns string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: registry.weft.local/demo:1
        ports:
        - {name: http, containerPort: 8080}
        - {name: echo, containerPort: 8081, protocol: UDP}
        env:
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        readinessProbe:
          httpGet: {path: /readyz, port: http}
          periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: echo, port: 8081, targetPort: echo, protocol: UDP}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  ingressClassName: weft
  tls: [{hosts: [%[2]s.weft.local]}]
  rules:
  - host: %[2]s.weft.local
    http:
      paths:
      - path: /
        pathType: Prefix
        backend: {service: {name: web, port: {name: http}}}
`, replicas, ns)
}

func nodePort(t *testing.T, ns, service, port string) int32 {
	t.Helper()
	s, err := client.CoreV1().Services(ns).Get(t.Context(), service, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Spec.Ports {
		if p.Name == port {
			return p.NodePort
		}
	}
	t.Fatalf("service %s has no port %s", service, port)
	return 0
}

func hostPort(node string, port int32) string {
	return net.JoinHostPort(node, strconv.Itoa(int(port)))
}

// ingressClient trusts Weft's own authority and finds every host at the first
// node.
func ingressClient(t *testing.T) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	eventually(t, time.Minute, "Weft's authority is published", func() error {
		object, err := client.CoreV1().ConfigMaps("weft-system").Get(t.Context(), "weft-ca", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !pool.AppendCertsFromPEM([]byte(object.Data["ca.crt"])) {
			return errors.New("ca.crt holds no certificate")
		}
		return nil
	})
	return &http.Client{
		Timeout:       5 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: pool},
			ForceAttemptHTTP2: true,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				_, port, _ := net.SplitHostPort(address)
				return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(nodes[0], port))
			},
		},
	}
}

// get fetches a page and returns its first line.
func get(c *http.Client, url string) (string, error) {
	response, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return strings.TrimSpace(string(body)), err
}

// load sends one request after the other until stopped, and reports how many
// there were and which failed.
func load(what string, request func() error) (stop func(t *testing.T)) {
	ctx, cancel := context.WithCancel(context.Background())
	var (
		done   sync.WaitGroup
		sent   int
		failed []error
	)
	done.Go(func() {
		for ctx.Err() == nil {
			sent++
			if err := request(); err != nil && len(failed) < 5 {
				failed = append(failed, fmt.Errorf("%s: %w", time.Now().Format(time.StampMilli), err))
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
	return func(t *testing.T) {
		t.Helper()
		cancel()
		done.Wait()
		t.Logf("%s: %d requests, %d failures noted", what, sent, len(failed))
		if err := errors.Join(failed...); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if sent < 10 {
			t.Errorf("%s: only %d requests were made", what, sent)
		}
	}
}

// freshClient opens a connection per request, so that every request is
// balanced anew.
func freshClient() *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
}
