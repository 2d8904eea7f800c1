package ingressaccess

import (
	"maps"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/controlplane/api"
)

// nodesGroup is what every node's certificate says.
const nodesGroup = "system:nodes"

// annotationClass chose the class before spec.ingressClassName did.
const annotationClass = "kubernetes.io/ingress.class"

// ourClasses returns the names of Weft's classes, and the one that Ingresses
// without a class belong to, "" if that is not one of ours. Of several the first
// by name is it, as for the agent.
func ourClasses(classes []*networkingv1.IngressClass) (ours map[string]bool, byDefault string) {
	ours = map[string]bool{}
	for _, class := range classes {
		if class.Spec.Controller != api.IngressController {
			continue
		}
		ours[class.Name] = true
		if class.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" && (byDefault == "" || class.Name < byDefault) {
			byDefault = class.Name
		}
	}
	return ours, byDefault
}

func className(ingress *networkingv1.Ingress, byDefault string) string {
	if ingress.Spec.IngressClassName != nil {
		return *ingress.Spec.IngressClassName
	}
	if name, ok := ingress.Annotations[annotationClass]; ok {
		return name
	}
	return byDefault
}

func sortedKeys(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }

func role(namespace string, secrets []string) *rbacv1.Role {
	return &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: Name},
		Rules: []rbacv1.PolicyRule{{
			APIGroups:     []string{""},
			Resources:     []string{"secrets"},
			ResourceNames: secrets,
			Verbs:         []string{"get", "list", "watch"},
		}},
	}
}

func binding(namespace string) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: nodesGroup}},
	}
}
