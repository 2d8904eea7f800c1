package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"k8s.io/client-go/tools/clientcmd"
)

// serveImages is the registry from which specs with the pull policy Always
// pull: it holds the archives' images, and the nodes take it for the registries
// of their names. close ends that.
func (o options) serveImages(ctx context.Context, archives map[string][]string) (close func(), err error) {
	host, err := o.hostAddress()
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	go func() { _ = server.Serve(listener) }() // ends with Close
	mirrored := map[string]bool{}
	close = func() {
		server.Close()
		for name := range mirrored {
			if err := o.weft(context.WithoutCancel(ctx), "image", "mirror", "--name", o.name, "--remove", name); err != nil {
				log.Print(err)
			}
		}
	}
	for archive, names := range archives {
		for _, image := range names {
			tag, err := name.NewTag(image)
			if err == nil && !mirrored[tag.RegistryStr()] {
				mirrored[tag.RegistryStr()] = true
				err = o.weft(ctx, "image", "mirror", "--name", o.name, tag.RegistryStr(), "http://"+listener.Addr().String())
			}
			if err == nil {
				err = push(ctx, archive, tag, listener.Addr().String())
			}
			if err != nil {
				close()
				return nil, fmt.Errorf("serve image %s: %w", image, err)
			}
		}
	}
	return close, nil
}

// push copies an image of an archive to a registry at addr.
func push(ctx context.Context, archive string, tag name.Tag, addr string) error {
	image, err := tarball.ImageFromPath(archive, &tag)
	if err != nil {
		return err
	}
	target, err := name.NewTag(fmt.Sprintf("%s/%s:%s", addr, tag.RepositoryStr(), tag.TagStr()), name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(target, image, remote.WithContext(ctx))
}

// hostAddress is this machine's own address on the network of the nodes.
func (o options) hostAddress() (string, error) {
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return "", err
	}
	server, err := url.Parse(config.Host)
	if err != nil {
		return "", err
	}
	connection, err := net.Dial("udp", net.JoinHostPort(server.Hostname(), "9")) // sends nothing
	if err != nil {
		return "", err
	}
	defer connection.Close()
	host, _, err := net.SplitHostPort(connection.LocalAddr().String())
	return host, err
}

func (o options) weft(ctx context.Context, args ...string) error {
	if output, err := exec.CommandContext(ctx, filepath.Join(o.bin, "weft"), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("weft %s: %w: %s", strings.Join(args, " "), err, output)
	}
	return nil
}
