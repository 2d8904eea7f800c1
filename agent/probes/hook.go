package probes

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
)

// maxHookBody is how many bytes of a hook's response are read before the connection is closed.
const maxHookBody = 10 << 10

// RunHTTPHook sends the request of a postStart or preStop httpGet hook to a container and returns an error if no response
// came before ctx ended. As in kubelet any response counts, whatever its status, and a server that answers an HTTPS hook in
// plain text is asked again in plain text.
func RunHTTPHook(ctx context.Context, action *corev1.HTTPGetAction, container *corev1.Container, podIP string) error {
	req, err := httpprobe.NewRequestForHTTPGetAction(action, container, podIP, "lifecycle")
	if err != nil {
		return err
	}
	client := newHookClient()
	err = sendHook(client, req.WithContext(ctx))
	if err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		plain := req.Clone(ctx)
		plain.URL.Scheme = "http"
		plain.Header.Del("Authorization")
		err = sendHook(client, plain)
	}
	if err != nil {
		return fmt.Errorf("hook GET %s: %w", action.Path, err)
	}
	return nil
}

// newHookClient returns a client that trusts any certificate, as kubelet's does for hooks: it carries no credentials, and there is
// nothing to verify against.
func newHookClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
			Proxy:             http.ProxyURL(nil),
			DisableKeepAlives: true,
		},
		CheckRedirect: httpprobe.RedirectChecker(false),
	}
}

func sendHook(client *http.Client, req *http.Request) error {
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxHookBody))
	return err
}
