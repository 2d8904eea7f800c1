package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"weft.dev/weft/docs/examples/website"
)

// runWebsites runs the example controller of docs/custom-resources.md on the
// host, at the host's address on the cluster's bridge.
func runWebsites(t *testing.T) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	host := netip.PrefixFrom(netip.MustParseAddr(nodes[0]), 24).Masked().Addr().Next()
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- website.Run(ctx, config, host) }()
	t.Cleanup(func() {
		kubectl("delete", "crd", "websites.example.com", "--timeout=30s").run()
		stop()
		if err := <-stopped; err != nil {
			t.Errorf("the example controller stopped with %v", err)
		}
	})
	eventually(t, 30*time.Second, "Websites are served", func() error { return kubectl("get", "websites").run() })
}

func TestTheExampleOfACustomResourceWorks(t *testing.T) {
	ns := namespace(t)
	runWebsites(t)
	shell(t, ns)
	apply(t, ns, `
apiVersion: example.com/v1
kind: Website
metadata: {name: blog}
spec: {page: "<h1>first</h1>", host: blog.example.com}
`)
	serves := func(page string) {
		t.Helper()
		eventually(t, time.Minute, "the page is served", func() error {
			out, err := inShell(ns, "timeout 3 wget -qO- http://blog/")
			if err == nil && out != page {
				err = fmt.Errorf("got %q, want %q", out, page)
			}
			return err
		})
	}
	serves("<h1>first</h1>")

	t.Run("a default was set and the scale subresource changes it", func(t *testing.T) {
		kubectl("-n", ns, "scale", "website/blog", "--replicas=2").must(t)
		eventually(t, time.Minute, "the status says two", func() error {
			out, err := kubectl("-n", ns, "get", "website", "blog", "-o", "jsonpath={.spec.replicas} {.status.replicas} {.status.readyReplicas}").output()
			if err == nil && out != "2 2 2" {
				err = errors.New(out)
			}
			return err
		})
	})
	t.Run("the status is not written through the object", func(t *testing.T) {
		kubectl("-n", ns, "patch", "website", "blog", "--type=merge", "-p", `{"status":{"readyReplicas":9}}`).must(t)
		if out := kubectl("-n", ns, "get", "website", "blog", "-o", "jsonpath={.status.readyReplicas}").must(t); out != "2" {
			t.Errorf("readyReplicas is %s", out)
		}
	})
	t.Run("validation names the field", func(t *testing.T) {
		for patch, want := range map[string]string{
			`{"spec":{"page":"<script>x</script>"}}`: "a page must not have scripts",
			`{"spec":{"replicas":11}}`:               "spec.replicas: Invalid value: 11",
			`{"spec":{"host":"other.example.com"}}`:  "the host cannot be changed",
			`{"spec":{"page":7}}`:                    "spec.page: Invalid value: \"integer\"",
		} {
			_, err := kubectl("-n", ns, "patch", "website", "blog", "--type=merge", "-p", patch).output()
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("patch %s: %v, want %s", patch, err, want)
			}
		}
	})
	t.Run("the older version is converted both ways", func(t *testing.T) {
		if out := kubectl("-n", ns, "get", "websites.v1alpha1.example.com", "blog", "-o", "jsonpath={.spec.html}").must(t); out != "<h1>first</h1>" {
			t.Errorf("spec.html of v1alpha1 is %q", out)
		}
		apply(t, ns, `
apiVersion: example.com/v1alpha1
kind: Website
metadata: {name: blog}
spec: {html: "<h1>second</h1>", host: blog.example.com}
`)
		serves("<h1>second</h1>")
	})
	kubectl("-n", ns, "delete", "website", "blog").must(t)
	eventually(t, time.Minute, "its children go with it", func() error {
		out, err := kubectl("-n", ns, "get", "deployments,services,configmaps", "-l", "example.com/website=blog", "-o", "name").output()
		if err == nil && out != "" {
			err = errors.New(out)
		}
		return err
	})
}
