package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	imageutils "k8s.io/kubernetes/test/utils/image"
)

// debian are the programs that the tests run inside agnhost and the DNS test
// image; a script (tools/install) puts their packages on this machine, and
// they are copied from here together with the libraries they need.
var debian = []string{"/usr/bin/bash", "/usr/bin/curl", "/usr/bin/dig", "/usr/bin/nc.openbsd", "/usr/bin/ss", "/usr/bin/socat", "/usr/bin/getent"}

// bashAsShell is the link of images with programs of Debian: the shell of
// Debian's busybox would run its own applets in their place.
const bashAsShell = "/bin/sh=/usr/bin/bash"

// recipe is one image of upstream's tests, made of local files.
type recipe struct {
	ids        []imageutils.ImageID // the names the tests know it by
	busybox    bool
	programs   []string // programs of this machine, with their libraries
	files      []string // FILE:PATH[:MODE]
	texts      map[string]string
	links      []string // PATH=TARGET
	dirs       []string
	entrypoint string
	cmd        string
	user       string
}

// recipes follow the Dockerfiles in test/images of k8s.io/kubernetes.
func (o options) recipes(ctx context.Context) ([]recipe, error) {
	upstream, err := moduleDir(ctx, "k8s.io/kubernetes")
	if err != nil {
		return nil, err
	}
	program := func(name, path string) string { return filepath.Join(o.bin, name) + ":" + path }
	porter := filepath.Join(upstream, "test/images/agnhost/porter")
	base := recipe{
		busybox: true, programs: debian,
		files: []string{program("agnhost", "/agnhost"), porter + "/localhost.crt:/localhost.crt", porter + "/localhost.key:/localhost.key"},
		links: []string{"/agnhost-2=agnhost", "/usr/bin/nc=nc.openbsd", bashAsShell}, dirs: []string{"/uploads", "/var/tmp"},
		texts: map[string]string{
			"/etc/nsswitch.conf": "hosts: files dns\n",
			"/etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
			"/etc/group":         "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\nnogroup:x:65534:\n",
		},
		entrypoint: "/agnhost", cmd: "pause",
	}
	withIDs := func(r recipe, ids ...imageutils.ImageID) recipe { r.ids = ids; return r }
	serving := func(data string, id imageutils.ImageID) recipe {
		r := withIDs(base, id)
		r.files = append(slices.Clone(r.files), data+":/data.json")
		r.cmd = "test-webserver"
		// The specs of image volumes know upstream's base image by this file.
		r.texts = maps.Clone(r.texts)
		r.texts["/etc/os-release"] = "NAME=\"Alpine Linux\"\n"
		return r
	}
	nginx, err := o.nginx(ctx)
	if err != nil {
		return nil, err
	}
	dns := withIDs(base, imageutils.GlibcDnsTesting)
	dns.files, dns.links, dns.entrypoint, dns.cmd = nil, []string{"/usr/bin/nc=nc.openbsd", bashAsShell}, "", "sh"
	return []recipe{
		withIDs(base, imageutils.Agnhost, imageutils.AgnhostPrev),
		{ids: []imageutils.ImageID{imageutils.BusyBox}, busybox: true, cmd: "sh"},
		{ids: []imageutils.ImageID{imageutils.NonRoot}, busybox: true, cmd: "sh", user: "1234"},
		{ids: []imageutils.ImageID{imageutils.Nonewprivs}, busybox: true, cmd: "nnp", files: []string{program("nnp", "/usr/local/bin/nnp:6755")}},
		{ids: []imageutils.ImageID{imageutils.Pause}, entrypoint: "/pause", user: "65535:65535", files: []string{program("pause", "/pause")}},
		{ids: []imageutils.ImageID{imageutils.Etcd}, files: []string{program("etcd", "/usr/local/bin/etcd")}, entrypoint: "/usr/local/bin/etcd"},
		{ids: []imageutils.ImageID{imageutils.APIServer}, files: []string{program("sample-apiserver", "/sample-apiserver")}, entrypoint: "/sample-apiserver"},
		dns,
		nginx,
		serving(filepath.Join(upstream, "test/images/kitten/html/data.json"), imageutils.Kitten),
		serving(filepath.Join(upstream, "test/images/nautilus/html/data.json"), imageutils.Nautilus),
	}, nil
}

// nginxConf is as in the image of nginx, which the tests expect: port 80, the
// pages below /usr/share/nginx/html, logs on the standard streams.
const nginxConf = `daemon off;
user nobody nogroup;
worker_processes 1;
pid /tmp/nginx.pid;
error_log /dev/stderr;
events {}
http {
  access_log /dev/stdout;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  server {
    listen 80;
    listen [::]:80;
    root /usr/share/nginx/html;
  }
}
`

// nginx unpacks Debian's package without installing it, which would start a
// server on this machine.
func (o options) nginx(ctx context.Context) (recipe, error) {
	dir := filepath.Join(o.bin, "conformance", "nginx")
	program := filepath.Join(dir, "usr/sbin/nginx")
	if _, err := os.Stat(program); err != nil {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return recipe{}, err
		}
		script := `cd "$1" && apt-get download -q nginx >&2 && dpkg-deb -x nginx_*.deb .`
		if output, err := exec.CommandContext(ctx, "sh", "-c", script, "sh", dir).CombinedOutput(); err != nil {
			return recipe{}, fmt.Errorf("fetch Debian's nginx: %w\n%s", err, output)
		}
	}
	libraries, err := libraries(ctx, program)
	if err != nil {
		return recipe{}, err
	}
	return recipe{
		ids: []imageutils.ImageID{imageutils.Nginx, imageutils.NginxNew}, busybox: true,
		files: append(libraries, program+":/usr/sbin/nginx"),
		texts: map[string]string{
			"/etc/nginx/nginx.conf":            nginxConf,
			"/usr/share/nginx/html/index.html": "<html><head><title>Welcome to nginx!</title></head></html>\n",
			"/etc/nsswitch.conf":               "hosts: files dns\n",
		},
		dirs: []string{"/var/log/nginx", "/var/lib/nginx"},
		cmd:  "nginx -c /etc/nginx/nginx.conf",
	}, nil
}

// provideImages builds what is missing, loads everything into the nodes, and
// returns the archives with the names of their images.
func (o options) provideImages(ctx context.Context) (map[string][]string, error) {
	recipes, err := o.recipes(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.bin, "images", "conformance")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	archives := map[string][]string{}
	load := []string{"image", "load", "--name", o.name}
	for _, r := range recipes {
		archive := filepath.Join(dir, r.fileName())
		if _, err := os.Stat(archive); err != nil {
			if err := o.build(ctx, r, archive); err != nil {
				return nil, fmt.Errorf("build image %s: %w", r.name(), err)
			}
		}
		load = append(load, archive)
		archives[archive] = r.names()
	}
	fmt.Printf("loading %d images into the nodes of %s\n", len(recipes), o.name)
	command := exec.CommandContext(ctx, filepath.Join(o.bin, "weft"), load...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if err := command.Run(); err != nil {
		return nil, fmt.Errorf("weft image load: %w", err)
	}
	return archives, nil
}

// name is the first name of the image.
func (r recipe) name() string { return r.names()[0] }

func (r recipe) names() []string {
	var names []string
	for _, id := range r.ids {
		names = append(names, imageutils.GetE2EImage(id))
	}
	return names
}

// fileName changes with the recipe, so that an archive of an older one is not used.
func (r recipe) fileName() string {
	hash := fnv.New32a()
	fmt.Fprintf(hash, "%+v", r)
	return fmt.Sprintf("%s-%x.tar", regexp.MustCompile(`[^a-z0-9.]+`).ReplaceAllString(r.name(), "-"), hash.Sum32())
}

// build writes the archive with tools/image.
func (o options) build(ctx context.Context, r recipe, archive string) error {
	scratch, err := os.MkdirTemp("", "weft-conformance-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if r.busybox {
		r.programs = append(slices.Clone(r.programs), "/usr/bin/bash")
		if !slices.Contains(r.links, bashAsShell) {
			r.files = append(slices.Clone(r.files), filepath.Join(o.bin, "sh")+":/bin/sh")
		}
	}
	args := []string{"-name", strings.Join(r.names(), ","), "-out", archive + ".new", "-entrypoint", r.entrypoint, "-cmd", r.cmd, "-user", r.user,
		"-links", strings.Join(r.links, ","), "-dirs", strings.Join(r.dirs, ",")}
	if r.busybox {
		args = append(args, "-busybox", "/bin/busybox")
	}
	files := slices.Clone(r.files)
	for path, text := range r.texts {
		file := filepath.Join(scratch, strings.ReplaceAll(path, "/", "_"))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		files = append(files, file+":"+path)
	}
	for _, program := range r.programs {
		needed, err := libraries(ctx, program)
		if err != nil {
			return err
		}
		files = append(append(files, needed...), program+":"+program)
	}
	slices.Sort(files)
	args = append(args, slices.Compact(files)...)
	command := exec.CommandContext(ctx, filepath.Join(o.bin, "image"), args...)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return os.Rename(archive+".new", archive)
}

// libraries are the shared libraries of a program, and its loader, at their
// own paths, as FILE:PATH.
func libraries(ctx context.Context, program string) ([]string, error) {
	if _, err := os.Stat(program); err != nil {
		return nil, err
	}
	output, err := exec.CommandContext(ctx, "ldd", program).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w: %s", program, err, output)
	}
	list, missing := parseLdd(string(output))
	if len(missing) > 0 {
		return nil, fmt.Errorf("%s needs %s, which are not on this machine", program, strings.Join(missing, ", "))
	}
	return list, nil
}

// parseLdd reads lines such as
//
//	linux-vdso.so.1 (0x…)
//	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)
//	libx.so.1 => not found
//	/lib64/ld-linux-x86-64.so.2 (0x…)
func parseLdd(output string) (files, missing []string) {
	for line := range strings.Lines(output) {
		name, rest, arrow := strings.Cut(strings.TrimSpace(line), " => ")
		if !arrow {
			rest = name
		}
		path, _, _ := strings.Cut(rest, " ")
		switch {
		case strings.HasPrefix(path, "/"):
			files = append(files, path+":"+path)
		case arrow:
			missing = append(missing, name)
		}
	}
	return files, missing
}

// moduleDir is where the sources of a module are.
func moduleDir(ctx context.Context, module string) (string, error) {
	output, err := exec.CommandContext(ctx, cmp.Or(os.Getenv("GO"), "go"), "list", "-m", "-f", "{{.Dir}}", module).Output()
	dir := strings.TrimSpace(string(output))
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("go list: %w: %s", err, exit.Stderr)
	}
	if err == nil && dir == "" {
		err = errors.New("it is not in the module cache")
	}
	if err != nil {
		return "", fmt.Errorf("sources of %s: %w", module, err)
	}
	return dir, nil
}
