package website

import (
	"encoding/json"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

func site(version, field string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": version, "kind": "Website",
		"metadata": map[string]any{"name": "blog", "namespace": "ns", "uid": "u1"},
		"spec":     map[string]any{field: "<h1>hi</h1>", "replicas": int64(3), "host": "blog.example.com"},
	}}
}

func TestConversionThereAndBackLosesNothing(t *testing.T) {
	old, current := site("example.com/v1alpha1", "html"), site("example.com/v1", "page")
	for _, c := range []struct{ from, to *unstructured.Unstructured }{{old, current}, {current, old}, {old, old}} {
		got := c.from.DeepCopy()
		if err := convert(got, c.to.GetAPIVersion()); err != nil {
			t.Fatal(err)
		}
		gotText, _ := json.Marshal(got)
		wantText, _ := json.Marshal(c.to)
		if string(gotText) != string(wantText) {
			t.Errorf("%s to %s:\ngot  %s\nwant %s", c.from.GetAPIVersion(), c.to.GetAPIVersion(), gotText, wantText)
		}
	}
}

func TestConversionOfTheUnknownFailsAsAWhole(t *testing.T) {
	known, _ := json.Marshal(site("example.com/v1", "page"))
	unknown, _ := json.Marshal(site("example.com/v9", "page"))
	response := review(&apiextensionsv1.ConversionRequest{
		UID: "r1", DesiredAPIVersion: "example.com/v1alpha1",
		Objects: []runtime.RawExtension{{Raw: known}, {Raw: unknown}},
	})
	if response.UID != "r1" || response.Result.Status != "Failure" || len(response.ConvertedObjects) > 0 {
		t.Errorf("response is %+v", response)
	}
}

func TestChildrenBelongToTheirWebsite(t *testing.T) {
	got := decide(site("example.com/v1", "page"))
	for _, owner := range []*string{
		got.Config.OwnerReferences[0].Kind, got.Deployment.OwnerReferences[0].Kind, got.Service.OwnerReferences[0].Kind,
	} {
		if *owner != "Website" {
			t.Errorf("an owner is a %s", *owner)
		}
	}
	if page := got.Config.Data["index.html"]; page != "<h1>hi</h1>" {
		t.Errorf("the page is %q", page)
	}
	if n := *got.Deployment.Spec.Replicas; n != 3 {
		t.Errorf("%d replicas", n)
	}
}

func TestTheDefinitionIsValidAndNamesTheWebhook(t *testing.T) {
	hook := &webhook{url: "https://192.0.2.1:1/convert", certificate: []byte("pem")}
	definition, err := hook.definition()
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(definition.Object)
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &crd); err != nil {
		t.Fatal(err)
	}
	client := crd.Spec.Conversion.Webhook.ClientConfig
	if *client.URL != hook.url || !strings.HasPrefix(string(client.CABundle), "pem") {
		t.Errorf("webhook is %+v", client)
	}
}
