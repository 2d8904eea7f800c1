// Package manifests holds the objects that every cluster starts with, as two
// templates: always.yaml is enforced at each start, once.yaml only created.
package manifests

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/template"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"weft.dev/weft/controlplane/api"
	"weft.dev/weft/controlplane/pki"
)

//go:embed always.yaml once.yaml
var files embed.FS

// FieldManager owns the fields set by always.yaml.
const FieldManager = "weft-server"

// BootstrapGroup is the group of a bootstrap token that lets a node join.
const BootstrapGroup = "system:bootstrappers:weft:default-node-token"

// Values fill in the templates.
type Values struct {
	// ClusterDNS is the address of the Service kube-system/kube-dns.
	ClusterDNS netip.Addr
	// ClusterInfo is a kubeconfig with the server's URL and CA and no user.
	ClusterInfo string
}

// Objects returns the objects to enforce at each start and those to create if
// they are missing, in the order in which they can be created.
func Objects(v Values) (always, once []*unstructured.Unstructured, err error) {
	if !v.ClusterDNS.IsValid() {
		return nil, nil, errors.New("cluster DNS address: must be set")
	}
	if always, err = render("always.yaml", v); err != nil {
		return nil, nil, err
	}
	once, err = render("once.yaml", v)
	return always, once, err
}

func render(name string, v Values) ([]*unstructured.Unstructured, error) {
	tmpl, err := template.New(name).Funcs(template.FuncMap{"indent": indent}).ParseFS(files, name)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	var out bytes.Buffer
	err = tmpl.Execute(&out, map[string]any{
		"SystemNamespace":        api.SystemNamespace,
		"AdminGroup":             pki.AdminGroup,
		"KubeletClientUser":      pki.KubeletClientUser,
		"BootstrapGroup":         BootstrapGroup,
		"IngressClass":           api.IngressClassName,
		"IngressController":      api.IngressController,
		"LocalStorageClass":      api.LocalStorageClass,
		"LocalVolumeProvisioner": api.LocalVolumeProvisioner,
		"LocalVolumeFinalizer":   api.LocalVolumeFinalizer,
		"NodeLabel":              api.NodeLabel,
		"ClusterDNS":             v.ClusterDNS,
		"ClusterInfo":            v.ClusterInfo,
	})
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", name, err)
	}
	return decode(name, &out)
}

func indent(spaces int, text string) string {
	pad := strings.Repeat(" ", spaces)
	return pad + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+pad)
}

func decode(name string, r io.Reader) ([]*unstructured.Unstructured, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(r, 4096)
	var objects []*unstructured.Unstructured
	for {
		obj := &unstructured.Unstructured{}
		err := decoder.Decode(obj)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decode object %d of %s: %w", len(objects), name, err)
		}
		objects = append(objects, obj)
	}
}

// Apply brings the objects to the cluster. It is safe to repeat.
func Apply(ctx context.Context, cfg *rest.Config, v Values) error {
	always, once, err := Objects(v)
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	mapper, err := newMapper(cfg)
	if err != nil {
		return err
	}
	for _, obj := range always {
		if err := enforce(ctx, client, mapper, obj); err != nil {
			return err
		}
	}
	for _, obj := range once {
		if err := create(ctx, client, mapper, obj); err != nil {
			return err
		}
	}
	return nil
}

func newMapper(cfg *rest.Config) (meta.RESTMapper, error) {
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make discovery client: %w", err)
	}
	groups, err := restmapper.GetAPIGroupResources(disco)
	if err != nil {
		return nil, fmt.Errorf("discover resources: %w", err)
	}
	return restmapper.NewDiscoveryRESTMapper(groups), nil
}

func enforce(ctx context.Context, client dynamic.Interface, mapper meta.RESTMapper, obj *unstructured.Unstructured) error {
	resource, err := resourceOf(client, mapper, obj)
	if err == nil {
		_, err = resource.Apply(ctx, obj.GetName(), obj, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
	}
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", obj.GetKind(), obj.GetName(), err)
	}
	return nil
}

func create(ctx context.Context, client dynamic.Interface, mapper meta.RESTMapper, obj *unstructured.Unstructured) error {
	resource, err := resourceOf(client, mapper, obj)
	if err == nil {
		_, err = resource.Create(ctx, obj, metav1.CreateOptions{FieldManager: FieldManager})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %s %s: %w", obj.GetKind(), obj.GetName(), err)
	}
	return nil
}

func resourceOf(client dynamic.Interface, mapper meta.RESTMapper, obj *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := obj.GroupVersionKind()
	mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return nil, err
	}
	resource := client.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return resource.Namespace(obj.GetNamespace()), nil
	}
	return resource, nil
}
