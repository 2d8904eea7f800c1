package website

import (
	"encoding/json"
	"fmt"
	"net/http"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// pageField is the name of the page by version.
var pageField = map[string]string{"example.com/v1": "page", "example.com/v1alpha1": "html"}

// convert changes a Website from its version to another. Nothing may be lost
// on the way there and back.
func convert(object *unstructured.Unstructured, to string) error {
	from, okFrom := pageField[object.GetAPIVersion()]
	name, okTo := pageField[to]
	if !okFrom || !okTo {
		return fmt.Errorf("cannot convert %s to %s", object.GetAPIVersion(), to)
	}
	object.SetAPIVersion(to)
	page, found, err := unstructured.NestedString(object.Object, "spec", from)
	if err != nil || !found || from == name {
		return err
	}
	unstructured.RemoveNestedField(object.Object, "spec", from)
	return unstructured.SetNestedField(object.Object, page, "spec", name)
}

// review answers a whole request of the API server, or says why it cannot.
func review(request *apiextensionsv1.ConversionRequest) *apiextensionsv1.ConversionResponse {
	response := &apiextensionsv1.ConversionResponse{UID: request.UID, Result: metav1.Status{Status: metav1.StatusSuccess}}
	fail := func(err error) *apiextensionsv1.ConversionResponse {
		response.ConvertedObjects = nil
		response.Result = metav1.Status{Status: metav1.StatusFailure, Message: err.Error()}
		return response
	}
	for _, raw := range request.Objects {
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(raw.Raw); err != nil {
			return fail(err)
		}
		if err := convert(object, request.DesiredAPIVersion); err != nil {
			return fail(err)
		}
		response.ConvertedObjects = append(response.ConvertedObjects, runtime.RawExtension{Object: object})
	}
	return response
}

// serveConversion is the webhook's handler.
func serveConversion(w http.ResponseWriter, r *http.Request) {
	var body apiextensionsv1.ConversionReview
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<20)).Decode(&body); err != nil || body.Request == nil {
		http.Error(w, "not a ConversionReview", http.StatusBadRequest)
		return
	}
	body.Response, body.Request = review(body.Request), nil
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // the API server tries again if it did not arrive
}
