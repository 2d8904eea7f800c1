package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// call is a kind of API request: POST, PUT, PATCH, DELETE, GET or LIST of a
// resource such as "pods" or "pods/status".
type call struct{ Verb, Resource string }

func (c call) isWrite() bool {
	switch c.Verb {
	case "POST", "PUT", "PATCH", "DELETE":
		return true
	}
	return false
}

// calls counts requests.
type calls map[call]int

// minus returns c without what is in other.
func (c calls) minus(other calls) calls {
	left := maps.Clone(c)
	for k, n := range other {
		if left[k] -= n; left[k] == 0 {
			delete(left, k)
		}
	}
	return left
}

// writes counts the requests that write.
func (c calls) writes() int {
	n := 0
	for k, count := range c {
		if k.isWrite() {
			n += count
		}
	}
	return n
}

// reads counts single and listed reads; watches are not among them.
func (c calls) reads() int {
	n := 0
	for k, count := range c {
		if k.Verb == "GET" || k.Verb == "LIST" {
			n += count
		}
	}
	return n
}

// measured are the resources that workload controllers read and write. Leases
// and the API server's own bookkeeping are left out.
var measured = map[string]bool{
	"pods": true, "events": true, "deployments": true, "replicasets": true, "statefulsets": true,
	"daemonsets": true, "jobs": true, "controllerrevisions": true, "persistentvolumeclaims": true, "nodes": true,
}

// served asks the API server how many requests of each kind it has answered.
func served(ctx context.Context, client kubernetes.Interface) (calls, error) {
	text, err := client.Discovery().RESTClient().Get().AbsPath("/metrics").Do(ctx).Raw()
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	return parseServed(strings.NewReader(string(text)))
}

func parseServed(text io.Reader) (calls, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		return nil, fmt.Errorf("parse metrics: %w", err)
	}
	family := families["apiserver_request_total"]
	if family == nil {
		return nil, fmt.Errorf("the API server does not count requests")
	}
	counted := calls{}
	for _, m := range family.Metric {
		resource := label(m, "resource")
		if !measured[resource] {
			continue
		}
		if sub := label(m, "subresource"); sub != "" {
			resource += "/" + sub
		}
		counted[call{label(m, "verb"), resource}] += int(m.GetCounter().GetValue())
	}
	return counted, nil
}

func label(m *dto.Metric, name string) string {
	for _, pair := range m.Label {
		if pair.GetName() == name {
			return pair.GetValue()
		}
	}
	return ""
}

// counter counts the requests that this process itself sends, by the names
// that the API server's metrics use.
type counter struct {
	next http.RoundTripper
	mu   *sync.Mutex
	sent calls
}

// RoundTrip counts the request and passes it on.
func (c counter) RoundTrip(r *http.Request) (*http.Response, error) {
	if k, ok := callOf(r); ok && measured[strings.Split(k.Resource, "/")[0]] {
		c.mu.Lock()
		c.sent[k]++
		c.mu.Unlock()
	}
	return c.next.RoundTrip(r)
}

func (c counter) snapshot() calls {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.sent)
}

// callOf reads a request's path:
//
//	/api/v1[/namespaces/NS]/RESOURCE[/NAME[/SUBRESOURCE]]
//	/apis/GROUP/VERSION[/namespaces/NS]/RESOURCE[/NAME[/SUBRESOURCE]]
func callOf(r *http.Request) (call, bool) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		parts = parts[3:]
	default:
		return call{}, false
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	k := call{Verb: r.Method, Resource: parts[0]}
	if len(parts) > 2 {
		k.Resource += "/" + parts[2]
	}
	if k.Verb == http.MethodGet && len(parts) == 1 {
		k.Verb = "LIST"
		if r.URL.Query().Get("watch") != "" {
			k.Verb = "WATCH"
		}
	}
	return k, true
}

// isLate says that an object changed or went away before the request came.
func isLate(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsConflict(err) }
