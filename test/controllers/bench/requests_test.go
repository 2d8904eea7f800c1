package main

import (
	"net/http"
	"strings"
	"testing"
)

func TestRequestsAreNamedAsTheMetricsNameThem(t *testing.T) {
	cases := []struct{ method, path, want string }{
		{"POST", "/api/v1/namespaces/bench/pods", "POST pods"},
		{"POST", "/api/v1/namespaces/bench/pods/a/binding", "POST pods/binding"},
		{"PATCH", "/api/v1/namespaces/bench/pods/a/status", "PATCH pods/status"},
		{"DELETE", "/api/v1/namespaces/bench/pods/a", "DELETE pods"},
		{"PATCH", "/apis/apps/v1/namespaces/bench/deployments/a", "PATCH deployments"},
		{"POST", "/api/v1/nodes", "POST nodes"},
		{"POST", "/api/v1/namespaces", "POST namespaces"},
		{"GET", "/api/v1/namespaces/bench", "GET namespaces"},
		{"GET", "/api/v1/pods?watch=true", "WATCH pods"},
		{"GET", "/api/v1/pods", "LIST pods"},
		{"GET", "/metrics", "nothing"},
	}
	for _, c := range cases {
		r, err := http.NewRequest(c.method, "https://server"+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := "nothing"
		if k, ok := callOf(r); ok {
			got = k.Verb + " " + k.Resource
		}
		if got != c.want {
			t.Errorf("%s %s is %s, want %s", c.method, c.path, got, c.want)
		}
	}
}

func TestRequestsOfOthersAreTakenOff(t *testing.T) {
	const metrics = `# TYPE apiserver_request_total counter
apiserver_request_total{verb="POST",resource="pods",subresource="",code="201"} 5
apiserver_request_total{verb="POST",resource="pods",subresource="",code="409"} 1
apiserver_request_total{verb="PATCH",resource="pods",subresource="status",code="200"} 5
apiserver_request_total{verb="WATCH",resource="pods",subresource="",code="200"} 3
apiserver_request_total{verb="GET",resource="deployments",subresource="",code="200"} 2
apiserver_request_total{verb="PUT",resource="leases",subresource="",code="200"} 9
`
	all, err := parseServed(strings.NewReader(metrics))
	if err != nil {
		t.Fatal(err)
	}
	left := all.minus(calls{{"PATCH", "pods/status"}: 5})
	if left.writes() != 6 || left.reads() != 2 {
		t.Errorf("%d writes and %d reads are left of %v, want 6 and 2", left.writes(), left.reads(), left)
	}
}
