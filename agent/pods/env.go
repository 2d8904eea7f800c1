package pods

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"weft.dev/weft/agent/volumes/downward"
)

// environment makes the variables of containers.
type environment struct {
	objects     Objects
	services    []*corev1.Service // all that the node knows
	allocatable corev1.ResourceList
	addresses   downward.Addresses
}

// of returns the environment of one container: service links, envFrom, env,
// later ones winning.
func (e environment) of(ctx context.Context, pod *corev1.Pod, c *corev1.Container) (map[string]string, error) {
	links := serviceLinks(e.services, pod.Namespace, pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks)
	own := map[string]string{}
	for i := range c.EnvFrom {
		if err := e.addFrom(ctx, own, pod.Namespace, &c.EnvFrom[i]); err != nil {
			return nil, err
		}
	}
	mapping := expansion.MappingFuncFor(own, links)
	for i := range c.Env {
		v := &c.Env[i]
		if v.ValueFrom == nil || v.Value != "" {
			own[v.Name] = expansion.Expand(v.Value, mapping)
			continue
		}
		value, present, err := e.value(ctx, pod, c, v.ValueFrom)
		if err != nil {
			return nil, err
		}
		if present {
			own[v.Name] = value
		}
	}
	maps.Copy(links, own)
	return links, nil
}

// addFrom adds all keys of a ConfigMap or Secret.
func (e environment) addFrom(ctx context.Context, env map[string]string, namespace string, from *corev1.EnvFromSource) error {
	switch {
	case from.ConfigMapRef != nil:
		object, err := e.objects.ConfigMap(ctx, namespace, from.ConfigMapRef.Name)
		if absent(err, from.ConfigMapRef.Optional) {
			return nil
		}
		if err != nil {
			return err
		}
		for k, v := range object.Data {
			env[from.Prefix+k] = v
		}
	case from.SecretRef != nil:
		object, err := e.objects.Secret(ctx, namespace, from.SecretRef.Name)
		if absent(err, from.SecretRef.Optional) {
			return nil
		}
		if err != nil {
			return err
		}
		for k, v := range object.Data {
			env[from.Prefix+k] = string(v)
		}
	}
	return nil
}

// value resolves one valueFrom; present is false for what is optional and
// not there.
func (e environment) value(ctx context.Context, pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource) (value string, present bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = downward.FieldRef(from.FieldRef, pod, e.addresses)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = downward.ResourceFieldRef(from.ResourceFieldRef, pod, c, e.allocatable)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		object, err := e.objects.ConfigMap(ctx, pod.Namespace, ref.Name)
		if absent(err, ref.Optional) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
		value, found := object.Data[ref.Key]
		return keyed(value, found, ref.Optional, ref.Key, "ConfigMap", pod.Namespace, ref.Name)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		object, err := e.objects.Secret(ctx, pod.Namespace, ref.Name)
		if absent(err, ref.Optional) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
		data, found := object.Data[ref.Key]
		return keyed(string(data), found, ref.Optional, ref.Key, "Secret", pod.Namespace, ref.Name)
	}
	return "", false, nil
}

func keyed(value string, found bool, optional *bool, key, kind, namespace, name string) (string, bool, error) {
	if !found && !isTrue(optional) {
		return "", false, fmt.Errorf("couldn't find key %v in %s %v/%v", key, kind, namespace, name)
	}
	return value, found, nil
}

func absent(err error, optional *bool) bool {
	return apierrors.IsNotFound(err) && isTrue(optional)
}

// serviceLinks are the variables that describe Services: always that of the
// API server, and with links those of the pod's namespace.
// https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
func serviceLinks(services []*corev1.Service, namespace string, links bool) map[string]string {
	out := map[string]string{}
	for _, s := range services {
		isMaster := s.Namespace == corev1.NamespaceDefault && s.Name == "kubernetes"
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 ||
			!isMaster && (!links || s.Namespace != namespace || s.Name == "kubernetes") {
			continue
		}
		prefix := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
		out[prefix+"_SERVICE_HOST"] = s.Spec.ClusterIP
		out[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
		for i, port := range s.Spec.Ports {
			addPort(out, prefix, s.Spec.ClusterIP, i == 0, port)
		}
	}
	return out
}

// addPort adds the variables of one port, Docker's link variables included.
func addPort(out map[string]string, prefix, host string, first bool, port corev1.ServicePort) {
	number := strconv.Itoa(int(port.Port))
	if port.Name != "" {
		out[prefix+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(port.Name, "-", "_"))] = number
	}
	protocol := "TCP"
	if port.Protocol != "" {
		protocol = string(port.Protocol)
	}
	url := strings.ToLower(protocol) + "://" + net.JoinHostPort(host, number)
	if first {
		out[prefix+"_PORT"] = url
	}
	link := prefix + "_PORT_" + number + "_" + strings.ToUpper(protocol)
	out[link] = url
	out[link+"_PROTO"] = strings.ToLower(protocol)
	out[link+"_PORT"] = number
	out[link+"_ADDR"] = host
}

// keyValues turns an environment into CRI's form, sorted by name.
func keyValues(env map[string]string) []*runtimeapi.KeyValue {
	var out []*runtimeapi.KeyValue
	for _, name := range slices.Sorted(maps.Keys(env)) {
		out = append(out, &runtimeapi.KeyValue{Key: name, Value: []byte(env[name])})
	}
	return out
}

// expandAll replaces $(VAR) in each string; unknown variables stay as they are.
func expandAll(list []string, env map[string]string) []string {
	mapping := expansion.MappingFuncFor(env)
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = expansion.Expand(s, mapping)
	}
	return out
}
