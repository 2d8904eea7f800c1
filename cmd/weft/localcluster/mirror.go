package localcluster

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
)

var registryName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?$`)

// Mirror makes every node ask a mirror for the images of a registry, such as
// docker.io or registry.k8s.io, before it asks the registry itself. It holds
// from the next pull on, and as long as the cluster. The mirror's URL must be
// reachable from the nodes.
func (c *Cluster) Mirror(registry, mirror string) error {
	if err := checkMirror(registry, mirror); err != nil {
		return err
	}
	for _, node := range c.AllNodes() {
		dir := filepath.Join(node.containerd("/").RegistryDir, registry)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, "hosts.toml"), []byte(hostsTOML(mirror)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Unmirror is the opposite of Mirror. It is no error if there was no mirror.
func (c *Cluster) Unmirror(registry string) error {
	if !registryName.MatchString(registry) {
		return fmt.Errorf("%q is not a registry's name such as docker.io or localhost:5000", registry)
	}
	var failed []error
	for _, node := range c.AllNodes() {
		failed = append(failed, os.RemoveAll(filepath.Join(node.containerd("/").RegistryDir, registry)))
	}
	return errors.Join(failed...)
}

// hostsTOML is containerd's configuration of a registry with a mirror
// (containerd's docs/hosts.md); without a "server", the registry itself comes last.
func hostsTOML(mirror string) string {
	return fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror)
}

func checkMirror(registry, mirror string) error {
	if !registryName.MatchString(registry) {
		return fmt.Errorf("%q is not a registry's name such as docker.io or localhost:5000", registry)
	}
	u, err := url.Parse(mirror)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("%q is not a mirror's URL such as http://172.30.0.1:5000", mirror)
	}
	return nil
}
