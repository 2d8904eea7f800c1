package ingress

import (
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"weft.dev/weft/controlplane/api"
)

// chooseIngresses returns the Ingresses that name a class of ours, oldest
// first, then by namespace and name.
func (t *translation) chooseIngresses() []*networkingv1.Ingress {
	classes := map[string]*networkingv1.IngressClass{}
	defaultClass := ""
	for _, class := range t.in.Classes {
		if class.Spec.Controller != api.IngressController {
			continue
		}
		classes[class.Name] = class
		if class.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" && (defaultClass == "" || class.Name < defaultClass) {
			defaultClass = class.Name
		}
	}
	var ours []*networkingv1.Ingress
	for _, ingress := range t.in.Ingresses {
		name := className(ingress, defaultClass)
		class := classes[name]
		if class == nil || ingress.DeletionTimestamp != nil {
			continue
		}
		if class.Spec.Parameters != nil {
			t.problem(ingress, ReasonUnsupportedClass, "spec.ingressClassName: IngressClass %s has spec.parameters, which Weft does not know; they have no effect", name)
		}
		ours = append(ours, ingress)
	}
	slices.SortFunc(ours, olderFirst)
	return ours
}

// className follows the API: the field, else the annotation it replaced, else
// the default class.
func className(ingress *networkingv1.Ingress, defaultClass string) string {
	if ingress.Spec.IngressClassName != nil {
		return *ingress.Spec.IngressClassName
	}
	if name, ok := ingress.Annotations[classAnnotation]; ok {
		return name
	}
	return defaultClass
}

func olderFirst(a, b *networkingv1.Ingress) int {
	if d := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); d != 0 {
		return d
	}
	return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
}
