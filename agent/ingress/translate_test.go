package ingress

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
)

var update = flag.Bool("update", false, "rewrite config.txt in testdata")

// TestTranslate reads objects.yaml of each file in testdata and compares the
// configuration, the hosts to issue for and the problems with config.txt.
func TestTranslate(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			objects := parse(t, section(archive, "objects.yaml"))
			got := describe(Translate(inputsOf(objects)))
			for range 5 {
				rand.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
				if again := describe(Translate(inputsOf(objects))); again != got {
					t.Fatalf("another order of objects gives\n%s\ninstead of\n%s", again, got)
				}
			}
			if *update {
				archive.Files = []txtar.File{{Name: "objects.yaml", Data: section(archive, "objects.yaml")}, {Name: "config.txt", Data: []byte(got)}}
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want := string(section(archive, "config.txt")); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func section(archive *txtar.Archive, name string) []byte {
	for _, file := range archive.Files {
		if file.Name == name {
			return file.Data
		}
	}
	return nil
}

func parse(t *testing.T, text []byte) []runtime.Object {
	t.Helper()
	var objects []runtime.Object
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		objects = append(objects, object)
	}
	return objects
}

// inputsOf knows a Secret as what its annotation "state" says.
func inputsOf(objects []runtime.Object) Inputs {
	services := map[types.NamespacedName]*corev1.Service{}
	slices := map[types.NamespacedName][]*discoveryv1.EndpointSlice{}
	secrets := map[types.NamespacedName]SecretState{}
	in := Inputs{
		HTTPAddress: ":80", HTTPSAddress: ":443", HTTPSPort: 443,
		Service: func(name types.NamespacedName) *corev1.Service { return services[name] },
		Slices:  func(name types.NamespacedName) []*discoveryv1.EndpointSlice { return slices[name] },
		Secret: func(name types.NamespacedName) SecretState {
			if state, ok := secrets[name]; ok {
				return state
			}
			return SecretMissing
		},
	}
	for _, object := range objects {
		switch o := object.(type) {
		case *networkingv1.Ingress:
			in.Ingresses = append(in.Ingresses, o)
		case *networkingv1.IngressClass:
			in.Classes = append(in.Classes, o)
		case *corev1.Service:
			services[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}] = o
		case *discoveryv1.EndpointSlice:
			name := types.NamespacedName{Namespace: o.Namespace, Name: o.Labels[discoveryv1.LabelServiceName]}
			slices[name] = append(slices[name], o)
		case *corev1.Secret:
			states := map[string]SecretState{"valid": SecretValid, "invalid": SecretInvalid, "unknown": SecretUnknown}
			secrets[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}] = states[o.Annotations["state"]]
		}
	}
	return in
}

func describe(out Output) string {
	var b strings.Builder
	if err := out.Config.Dump(&b); err != nil {
		return err.Error()
	}
	for _, host := range out.Issue {
		fmt.Fprintf(&b, "issue %s\n", host)
	}
	for _, p := range out.Problems {
		fmt.Fprintf(&b, "event %s/%s %s: %s\n", p.Ingress.Namespace, p.Ingress.Name, p.Reason, p.Message)
	}
	return b.String()
}
