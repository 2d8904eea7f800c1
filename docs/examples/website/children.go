package website

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
)

// children is what a Website is made of.
type children struct {
	Config     *corev1ac.ConfigMapApplyConfiguration
	Deployment *appsv1ac.DeploymentApplyConfiguration
	Service    *corev1ac.ServiceApplyConfiguration
}

func labelsOf(site *unstructured.Unstructured) map[string]string {
	return map[string]string{"example.com/website": site.GetName()}
}

// decide returns the children that a Website is to have. They are its own, so
// the garbage collector takes them with it.
func decide(site *unstructured.Unstructured) children {
	namespace, name, labels := site.GetNamespace(), site.GetName(), labelsOf(site)
	page, _, _ := unstructured.NestedString(site.Object, "spec", "page") // validated by the API server
	replicas, _, _ := unstructured.NestedInt64(site.Object, "spec", "replicas")
	owner := metav1ac.OwnerReference().WithAPIVersion(site.GetAPIVersion()).WithKind(site.GetKind()).
		WithName(name).WithUID(site.GetUID()).WithController(true)

	container := corev1ac.Container().WithName("httpd").WithImage("registry.weft.local/busybox:1").
		WithCommand("httpd", "-f", "-p", "8080", "-h", "/page").
		WithPorts(corev1ac.ContainerPort().WithName("http").WithContainerPort(8080)).
		WithVolumeMounts(corev1ac.VolumeMount().WithName("page").WithMountPath("/page"))
	volume := corev1ac.Volume().WithName("page").
		WithConfigMap(corev1ac.ConfigMapVolumeSource().WithName(name))
	template := corev1ac.PodTemplateSpec().WithLabels(labels).WithSpec(corev1ac.PodSpec().
		WithContainers(container).WithVolumes(volume).WithTerminationGracePeriodSeconds(1))
	return children{
		Config: corev1ac.ConfigMap(name, namespace).WithLabels(labels).WithOwnerReferences(owner).
			WithData(map[string]string{"index.html": page}),
		Deployment: appsv1ac.Deployment(name, namespace).WithLabels(labels).WithOwnerReferences(owner).
			WithSpec(appsv1ac.DeploymentSpec().WithReplicas(int32(replicas)).
				WithSelector(metav1ac.LabelSelector().WithMatchLabels(labels)).WithTemplate(template)),
		Service: corev1ac.Service(name, namespace).WithLabels(labels).WithOwnerReferences(owner).
			WithSpec(corev1ac.ServiceSpec().WithSelector(labels).
				WithPorts(corev1ac.ServicePort().WithPort(80).WithTargetPort(intstr.FromString("http")))),
	}
}
