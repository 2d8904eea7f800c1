package cri

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/distribution/reference"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Media types of images: OCI's and Docker's.
const (
	mediaIndex          = "application/vnd.oci.image.index.v1+json"
	mediaManifest       = "application/vnd.oci.image.manifest.v1+json"
	mediaDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	mediaDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	mediaDockerConfig   = "application/vnd.docker.container.image.v1+json"
	mediaDockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	mediaDockerLayerGz  = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

const (
	// criNamespace is containerd's namespace of what CRI uses.
	criNamespace = "k8s.io"
	// chunk is how much of a blob is sent at a time, in bytes.
	chunk = 1 << 20
	// maxJSON is the largest blob that may be a manifest, in bytes.
	maxJSON = 4 << 20
)

// gcLabel is where containerd's garbage collector reads what a blob refers to.
const gcLabel = "containerd.io/gc.ref.content."

// ImportImages reads an image archive, as docker save or an OCI layout in a
// tar, into the containerd behind conn, for use by CRI. It returns the names
// of the images, fully qualified, once CRI knows them. An image of the same
// name is replaced.
func ImportImages(ctx context.Context, conn grpc.ClientConnInterface, archive io.Reader) ([]string, error) {
	im := &importer{
		content: contentapi.NewContentClient(conn),
		images:  imagesapi.NewImagesClient(conn),
		cri:     runtimeapi.NewImageServiceClient(conn),
		files:   map[string]blob{},
		json:    map[string][]byte{},
	}
	// A lease keeps blobs from the garbage collector until an image holds them.
	leases := leasesapi.NewLeasesClient(conn)
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", criNamespace)
	lease, err := leases.Create(ctx, &leasesapi.CreateRequest{})
	if err != nil {
		return nil, fmt.Errorf("lease for the import: %w", err)
	}
	defer func() {
		// The lease of a failed import would keep its blobs for ever.
		_, _ = leases.Delete(context.WithoutCancel(ctx), &leasesapi.DeleteRequest{ID: lease.Lease.ID})
	}()
	im.lease, im.unpacker = lease.Lease.ID, newUnpacker(conn, lease.Lease.ID)
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-lease", im.lease)
	if err := im.readArchive(ctx, archive); err != nil {
		return nil, err
	}
	return im.register(ctx)
}

// blob is one file of the archive, stored.
type blob struct {
	digest string
	size   int64
	gzip   bool
}

type importer struct {
	content contentapi.ContentClient
	images  imagesapi.ImagesClient
	cri     runtimeapi.ImageServiceClient
	lease   string
	files   map[string]blob   // by path in the archive
	links   map[string]string // hard and symbolic links, to their target
	json    map[string][]byte // what may be JSON, by digest
	unpacker
}

// descriptor, manifest and index are the parts of OCI's image specification
// that an import reads and writes.
type descriptor struct {
	MediaType   string            `json:"mediaType,omitempty"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType,omitempty"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	Manifests []descriptor `json:"manifests"`
}

// dockerImage is one entry of docker save's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// readArchive stores every file of the archive as a blob.
func (im *importer) readArchive(ctx context.Context, archive io.Reader) error {
	im.links = map[string]string{}
	files := tar.NewReader(archive)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read image archive: %w", err)
		}
		name := path.Clean(header.Name)
		switch header.Typeflag {
		case tar.TypeReg:
			if im.files[name], err = im.store(ctx, name, header.Size, files); err != nil {
				return fmt.Errorf("import %s: %w", name, err)
			}
		case tar.TypeSymlink:
			im.links[name] = path.Join(path.Dir(name), header.Linkname)
		case tar.TypeLink:
			im.links[name] = path.Clean(header.Linkname)
		}
	}
}

// file finds a stored file, through links.
func (im *importer) file(name string) (blob, error) {
	name = path.Clean(name)
	for range 10 {
		if found, ok := im.files[name]; ok {
			return found, nil
		}
		name = im.links[name]
	}
	return blob{}, fmt.Errorf("archive lacks %s", name)
}

// store writes one blob into containerd's content store.
func (im *importer) store(ctx context.Context, name string, size int64, r io.Reader) (blob, error) {
	buffered := bufio.NewReaderSize(r, chunk)
	magic, err := buffered.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return blob{}, err
	}
	out := blob{size: size, gzip: bytes.Equal(magic, []byte{0x1f, 0x8b})}
	var keep *bytes.Buffer
	if size <= maxJSON && (bytes.HasPrefix(magic, []byte("{")) || bytes.HasPrefix(magic, []byte("["))) {
		keep = &bytes.Buffer{}
	}
	ctx, cancel := context.WithCancel(ctx) // ends the stream, however we return
	defer cancel()
	stream, err := im.content.Write(ctx)
	if err != nil {
		return out, err
	}
	ref := "weft-import-" + im.lease + "-" + name
	buffer := make([]byte, chunk)
	for offset := int64(0); offset < size; {
		n, err := io.ReadFull(buffered, buffer[:min(chunk, size-offset)])
		if err != nil {
			return out, err
		}
		if keep != nil {
			keep.Write(buffer[:n])
		}
		request := &contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Ref: ref, Total: size, Offset: offset, Data: buffer[:n]}
		if _, err := exchange(stream, request); err != nil {
			return out, err
		}
		offset += int64(n)
	}
	answer, err := exchange(stream, &contentapi.WriteContentRequest{Action: contentapi.WriteAction_COMMIT, Ref: ref, Total: size, Offset: size})
	out.digest = existing(err)
	if err == nil {
		out.digest = answer.Digest
	} else if out.digest == "" {
		return out, err
	}
	if keep != nil {
		im.json[out.digest] = keep.Bytes()
	}
	return out, nil
}

// exchange sends one request and waits for its answer.
func exchange(stream contentapi.Content_WriteClient, request *contentapi.WriteContentRequest) (*contentapi.WriteContentResponse, error) {
	if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return stream.Recv() // has the server's error if Send met the stream's end
}

// existing returns the digest of a blob that containerd already has, which it
// names in its refusal: "content sha256:…: already exists".
func existing(err error) string {
	if status.Code(err) != codes.AlreadyExists {
		return ""
	}
	text := status.Convert(err).Message()
	at := strings.Index(text, "sha256:")
	if at < 0 || len(text) < at+71 {
		return ""
	}
	return text[at : at+71]
}

// register creates the images that the archive's index names.
func (im *importer) register(ctx context.Context) ([]string, error) {
	if list, err := im.file("manifest.json"); err == nil {
		return im.registerDocker(ctx, list)
	}
	list, err := im.file("index.json")
	if err != nil {
		return nil, errors.New("not an image archive: it has neither manifest.json nor index.json")
	}
	var idx index
	if err := json.Unmarshal(im.json[list.digest], &idx); err != nil {
		return nil, fmt.Errorf("read index.json: %w", err)
	}
	var names []string
	for _, d := range idx.Manifests {
		name := d.Annotations["io.containerd.image.name"]
		if name == "" {
			name = d.Annotations["org.opencontainers.image.ref.name"]
		}
		if name == "" {
			return names, fmt.Errorf("image %s has no name: annotation io.containerd.image.name is missing", d.Digest)
		}
		if err := im.hold(ctx, d); err != nil {
			return names, err
		}
		full, err := im.create(ctx, name, d)
		if err != nil {
			return names, err
		}
		names = append(names, full)
	}
	return names, nil
}

// references are the labels that hold what a manifest needs.
func (m manifest) references() map[string]string {
	out := map[string]string{gcLabel + "config": m.Config.Digest}
	for i, layer := range m.Layers {
		out[fmt.Sprintf("%sl.%d", gcLabel, i)] = layer.Digest
	}
	return out
}

// hold labels a manifest or index, and all below it, with what they refer to.
func (im *importer) hold(ctx context.Context, d descriptor) error {
	data, ok := im.json[d.Digest]
	if !ok {
		return fmt.Errorf("archive lacks the manifest %s", d.Digest)
	}
	switch d.MediaType {
	case mediaManifest, mediaDockerManifest:
		var m manifest
		if err := json.Unmarshal(data, &m); err != nil {
			return fmt.Errorf("read manifest %s: %w", d.Digest, err)
		}
		return im.holdManifest(ctx, d, m)
	case mediaIndex, mediaDockerList:
		var idx index
		if err := json.Unmarshal(data, &idx); err != nil {
			return fmt.Errorf("read index %s: %w", d.Digest, err)
		}
		labels := map[string]string{}
		for i, child := range idx.Manifests {
			if _, ok := im.json[child.Digest]; !ok {
				continue // archives may leave out other platforms
			}
			if err := im.hold(ctx, child); err != nil {
				return err
			}
			labels[fmt.Sprintf("%sm.%d", gcLabel, i)] = child.Digest
		}
		return im.label(ctx, d.Digest, labels)
	}
	return fmt.Errorf("image %s has unknown media type %q", d.Digest, d.MediaType)
}

func (im *importer) label(ctx context.Context, digest string, labels map[string]string) error {
	mask := &fieldmaskpb.FieldMask{}
	for key := range labels {
		mask.Paths = append(mask.Paths, "labels."+key)
	}
	_, err := im.content.Update(ctx, &contentapi.UpdateRequest{
		Info: &contentapi.Info{Digest: digest, Labels: labels}, UpdateMask: mask})
	if err != nil {
		return fmt.Errorf("label %s: %w", digest, err)
	}
	return nil
}

// pinnedLabel keeps the agent from removing an image that nothing uses: what
// was imported may not be pulled again (containerd, internal/cri/labels).
const pinnedLabel = "io.cri-containerd.pinned"

// create names an image, in the form that CRI looks it up by.
func (im *importer) create(ctx context.Context, name string, d descriptor) (string, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", name, err)
	}
	image := &imagesapi.Image{Name: named.String(), Target: &types.Descriptor{
		MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, Labels: map[string]string{pinnedLabel: "pinned"}}
	_, err = im.images.Create(ctx, &imagesapi.CreateImageRequest{Image: image})
	if status.Code(err) == codes.AlreadyExists {
		_, err = im.images.Update(ctx, &imagesapi.UpdateImageRequest{Image: image,
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"target", "labels." + pinnedLabel}}})
	}
	if err != nil {
		return "", fmt.Errorf("create image %s: %w", image.Name, err)
	}
	return image.Name, im.waitForCRI(ctx, image.Name)
}

// waitForCRI returns when CRI, which follows containerd's events, knows an image.
func (im *importer) waitForCRI(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		found, err := im.cri.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err == nil && found.Image != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("image %s does not appear in CRI: %w", name, errors.Join(err, ctx.Err()))
		case <-time.After(5 * time.Millisecond):
		}
	}
}
