// Command image writes a container image as an OCI archive, without a
// container engine and without a registry: one layer of the files named.
//
//	image -name registry.weft.local/pause:1 -out pause.tar -entrypoint /pause bin/pause:/pause
//	image -name busybox:1.35 -out busybox.tar -busybox /bin/busybox -cmd sh
//	image -name tool:1 -out tool.tar -links /bin/t=/tool -dirs /data bin/tool:/tool:4755
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("image: ")
	var (
		names      = flag.String("name", "", "names of the image, separated by commas (required)")
		out        = flag.String("out", "", "archive to write (required)")
		entrypoint = flag.String("entrypoint", "", "entrypoint, words separated by spaces")
		cmd        = flag.String("cmd", "", "command, words separated by spaces")
		user       = flag.String("user", "", "user of the process, uid or uid:gid")
		busybox    = flag.String("busybox", "", "static busybox program to install with a link per applet")
		links      = flag.String("links", "", "symbolic links to make, PATH=TARGET separated by commas")
		dirs       = flag.String("dirs", "", "empty directories to make, writable by everybody, separated by commas")
	)
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: image -name NAME -out ARCHIVE [flags] FILE:PATH[:MODE]...")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *names == "" || *out == "" {
		flag.Usage()
		os.Exit(2)
	}
	config := v1.Config{
		Entrypoint: strings.Fields(*entrypoint),
		Cmd:        strings.Fields(*cmd),
		User:       *user,
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	content := content{busybox: *busybox, files: flag.Args(), links: list(*links), dirs: list(*dirs)}
	if err := write(list(*names), *out, config, content); err != nil {
		log.Fatal(err)
	}
}

// list splits at commas; nothing of an empty string.
func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' })
}

// content is what to put into the layer, as the flags have it.
type content struct {
	busybox            string
	files, links, dirs []string
}

func write(names []string, out string, config v1.Config, c content) error {
	layer := &layer{made: map[string]bool{}}
	layer.archive = tar.NewWriter(&layer.content)
	layer.baseFiles()
	if err := layer.fill(c); err != nil {
		return err
	}
	if err := layer.archive.Close(); err != nil {
		return err
	}
	image, err := layer.image(config)
	if err != nil {
		return err
	}
	refs := map[name.Reference]v1.Image{}
	for _, text := range names {
		ref, err := name.ParseReference(text)
		if err != nil {
			return err
		}
		refs[ref] = image
	}
	return tarball.MultiRefWriteToFile(out, refs)
}

// layer is the one layer of an image, with fixed times and owners so that the
// same files give the same digest.
type layer struct {
	content bytes.Buffer
	archive *tar.Writer
	made    map[string]bool
}

// baseFiles are what programs expect of any root file system.
func (l *layer) baseFiles() {
	l.add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	l.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
	l.text("etc/group", "root:x:0:\nnogroup:x:65534:\n")
}

func (l *layer) text(target, content string) {
	l.add(tar.Header{Name: target, Mode: 0o644, Size: int64(len(content))}, []byte(content))
}

func (l *layer) fill(c content) error {
	for _, dir := range c.dirs {
		if err := l.add(tar.Header{Name: strings.TrimSuffix(dir, "/") + "/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil); err != nil {
			return err
		}
	}
	for _, link := range c.links {
		at, target, found := strings.Cut(link, "=")
		if !found {
			return fmt.Errorf("%q: write PATH=TARGET", link)
		}
		if err := l.add(tar.Header{Name: at, Typeflag: tar.TypeSymlink, Linkname: target}, nil); err != nil {
			return err
		}
	}
	if c.busybox != "" {
		if err := l.busybox(c.busybox); err != nil {
			return err
		}
	}
	for _, file := range c.files {
		source, target, found := strings.Cut(file, ":")
		if !found {
			return fmt.Errorf("%q: write FILE:PATH", file)
		}
		target, mode, _ := strings.Cut(target, ":")
		if err := l.file(source, target, mode); err != nil {
			return err
		}
	}
	return nil
}

// file adds one file; mode is octal, with the set-user-ID bit if need be, or
// "" for that of the source.
func (l *layer) file(source, target, mode string) error {
	content, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	bits := int64(info.Mode().Perm())
	if mode != "" {
		if bits, err = strconv.ParseInt(mode, 8, 64); err != nil {
			return fmt.Errorf("mode %q of %s is not octal", mode, target)
		}
	}
	return l.add(tar.Header{Name: target, Mode: bits, Size: int64(len(content))}, content)
}

// busybox installs the program with a symbolic link for each applet it lists,
// except where another link stands already.
func (l *layer) busybox(program string) error {
	applets, err := exec.Command(program, "--list").Output()
	if err != nil {
		return fmt.Errorf("list applets of %s: %w", program, err)
	}
	if err := l.file(program, "bin/busybox", ""); err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet == "busybox" || l.made["bin/"+applet] {
			continue
		}
		if err := l.add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox"}, nil); err != nil {
			return err
		}
	}
	l.add(tar.Header{Name: "root/", Typeflag: tar.TypeDir, Mode: 0o700}, nil)
	return nil
}

// add writes one entry, after the directories it stands in.
func (l *layer) add(header tar.Header, content []byte) error {
	header.Name = strings.TrimPrefix(header.Name, "/")
	if dir := path.Dir(strings.TrimSuffix(header.Name, "/")); dir != "." && !l.made[dir] {
		if err := l.add(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil); err != nil {
			return err
		}
	}
	if header.Typeflag == tar.TypeDir || header.Typeflag == tar.TypeSymlink {
		l.made[strings.TrimSuffix(header.Name, "/")] = true
	}
	if err := l.archive.WriteHeader(&header); err != nil {
		return err
	}
	_, err := l.archive.Write(content)
	return err
}

func (l *layer) image(config v1.Config) (v1.Image, error) {
	content := l.content.Bytes()
	compressed, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	})
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, compressed)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Config, file.OS, file.Architecture = config, "linux", arch()
	return mutate.ConfigFile(image, file)
}
