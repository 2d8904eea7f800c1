package downward

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func pod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web-0", Namespace: "shop", UID: "1-2-3",
			Labels:      map[string]string{"tier": "front", "app": "web"},
			Annotations: map[string]string{"Builder": "bar", "note": "a \"b\"\nc"},
		},
		Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "robot", Containers: []corev1.Container{
			{Name: "app", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("250m"), "memory": resource.MustParse("32Mi")},
				Limits:   corev1.ResourceList{"cpu": resource.MustParse("1250m"), "memory": resource.MustParse("64Mi")},
			}},
			{Name: "free"},
		}},
	}
}

func TestFieldRef(t *testing.T) {
	addrs := Addresses{HostIPs: []string{"10.0.0.1", "fd00::1"}, PodIPs: []string{"10.244.1.5", "fd01::5"}}
	for path, want := range map[string]string{
		"metadata.name":                   "web-0",
		"metadata.namespace":              "shop",
		"metadata.uid":                    "1-2-3",
		"metadata.labels":                 "app=\"web\"\ntier=\"front\"",
		"metadata.annotations":            "Builder=\"bar\"\nnote=\"a \\\"b\\\"\\nc\"",
		"metadata.labels['tier']":         "front",
		"metadata.labels['none']":         "",
		"metadata.annotations['Builder']": "bar",
		"spec.nodeName":                   "n1",
		"spec.serviceAccountName":         "robot",
		"status.hostIP":                   "10.0.0.1",
		"status.hostIPs":                  "10.0.0.1,fd00::1",
		"status.podIP":                    "10.244.1.5",
		"status.podIPs":                   "10.244.1.5,fd01::5",
	} {
		t.Run(path, func(t *testing.T) {
			got, err := FieldRef(&corev1.ObjectFieldSelector{FieldPath: path}, pod(), addrs)
			if err != nil || got != want {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
		})
	}
}

func TestAddressesNotKnownYetAreEmpty(t *testing.T) {
	for _, path := range []string{"status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs"} {
		if got, err := FieldRef(&corev1.ObjectFieldSelector{FieldPath: path}, pod(), Addresses{}); got != "" || err != nil {
			t.Errorf("%s gives %q, %v", path, got, err)
		}
	}
}

func TestFieldRefNamesTheFieldItRefuses(t *testing.T) {
	for ref, want := range map[corev1.ObjectFieldSelector]string{
		{FieldPath: "spec.containers"}:                     "fieldRef.fieldPath: unsupported fieldPath: spec.containers",
		{FieldPath: "metadata.name['x']"}:                  `fieldRef.fieldPath: fieldPath "metadata.name['x']" does not support subscript`,
		{FieldPath: "metadata.name", APIVersion: "v1beta"}: `fieldRef.apiVersion: "v1beta" is not supported, only v1`,
	} {
		if _, err := FieldRef(&ref, pod(), Addresses{}); err == nil || err.Error() != want {
			t.Errorf("%v gives %v, want %q", ref, err, want)
		}
	}
}

func TestResourceFieldRef(t *testing.T) {
	allocatable := corev1.ResourceList{"cpu": resource.MustParse("3500m"), "memory": resource.MustParse("1Gi")}
	p := pod()
	for name, test := range map[string]struct {
		ref  corev1.ResourceFieldSelector
		own  *corev1.Container
		want string
	}{
		"a CPU limit is rounded up to whole cores":       {corev1.ResourceFieldSelector{ContainerName: "app", Resource: "limits.cpu"}, nil, "2"},
		"a divisor changes the unit":                     {corev1.ResourceFieldSelector{ContainerName: "app", Resource: "limits.cpu", Divisor: resource.MustParse("1m")}, nil, "1250"},
		"memory is in bytes by default":                  {corev1.ResourceFieldSelector{ContainerName: "app", Resource: "limits.memory"}, nil, "67108864"},
		"memory in mebibytes":                            {corev1.ResourceFieldSelector{ContainerName: "app", Resource: "requests.memory", Divisor: resource.MustParse("1Mi")}, nil, "32"},
		"a limit not set is the node's":                  {corev1.ResourceFieldSelector{ContainerName: "free", Resource: "limits.cpu"}, nil, "4"},
		"a request not set is zero":                      {corev1.ResourceFieldSelector{ContainerName: "free", Resource: "requests.cpu"}, nil, "0"},
		"in an environment the container is its own one": {corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}, &p.Spec.Containers[1], "1024"},
		"another container can be named":                 {corev1.ResourceFieldSelector{ContainerName: "app", Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}, &p.Spec.Containers[1], "64"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ResourceFieldRef(&test.ref, p, test.own, allocatable)
			if err != nil || got != test.want {
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			}
		})
	}
	if _, ok := p.Spec.Containers[1].Resources.Limits["cpu"]; ok {
		t.Error("the pod was changed")
	}
}

func TestResourceFieldRefRefusals(t *testing.T) {
	for ref, want := range map[corev1.ResourceFieldSelector]string{
		{Resource: "limits.cpu"}:                        "resourceFieldRef.containerName: required in a volume",
		{Resource: "limits.cpu", ContainerName: "none"}: "resourceFieldRef: container none not found",
		{Resource: "limits.gpu", ContainerName: "app"}:  "resourceFieldRef: unsupported container resource : limits.gpu",
	} {
		if _, err := ResourceFieldRef(&ref, pod(), nil, nil); err == nil || err.Error() != want {
			t.Errorf("%v gives %v, want %q", ref, err, want)
		}
	}
}

// FuzzFieldRef holds that no path, however odd, makes FieldRef panic, and that a value comes only from a path that the API allows.
func FuzzFieldRef(f *testing.F) {
	for _, seed := range []string{"metadata.labels['tier']", "metadata.labels['']", "metadata.annotations['a/b']", "['']", "metadata.name", "status.podIPs", "']"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		value, err := FieldRef(&corev1.ObjectFieldSelector{FieldPath: path}, pod(), Addresses{})
		if err != nil && value != "" {
			t.Errorf("%q gives both %q and %v", path, value, err)
		}
	})
}
