package pods

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// safeSysctls are those that a pod may set: they are namespaced and harm
// nobody else (kubernetes/pkg/kubelet/sysctl/safe_sysctls.go).
var safeSysctls = map[string]bool{
	"kernel.shm_rmid_forced":              true,
	"net.ipv4.ip_local_port_range":        true,
	"net.ipv4.tcp_syncookies":             true,
	"net.ipv4.ping_group_range":           true,
	"net.ipv4.ip_unprivileged_port_start": true,
	"net.ipv4.ip_local_reserved_ports":    true,
	"net.ipv4.tcp_keepalive_time":         true,
	"net.ipv4.tcp_fin_timeout":            true,
	"net.ipv4.tcp_keepalive_intvl":        true,
	"net.ipv4.tcp_keepalive_probes":       true,
	"net.ipv4.tcp_rmem":                   true,
	"net.ipv4.tcp_wmem":                   true,
}

// unsupported refuses what this agent would otherwise have to ignore, by the
// name of the field.
func unsupported(pod *corev1.Pod) *rejection {
	if pod.Spec.OS != nil && pod.Spec.OS.Name != corev1.Linux {
		return &rejection{"PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"}
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			if name := strings.ReplaceAll(s.Name, "/", "."); !safeSysctls[name] {
				return &rejection{"SysctlForbidden", fmt.Sprintf("forbidden sysctl: %q not allowlisted", s.Name)}
			}
		}
	}
	if field := unsupportedField(pod); field != "" {
		return &rejection{"PodFeatureUnsupported", fmt.Sprintf("Pod was rejected: %s is not supported by this node", field)}
	}
	return nil
}

func unsupportedField(pod *corev1.Pod) string {
	spec := &pod.Spec
	switch {
	case spec.HostUsers != nil && !*spec.HostUsers:
		return "spec.hostUsers: false"
	case spec.RuntimeClassName != nil:
		return "spec.runtimeClassName"
	case len(spec.ResourceClaims) > 0:
		return "spec.resourceClaims"
	case spec.SecurityContext != nil && asksAppArmor(spec.SecurityContext.AppArmorProfile):
		return "spec.securityContext.appArmorProfile"
	}
	field := ""
	everyContainer(pod, func(c *corev1.Container) {
		if found := unsupportedInContainer(c); found != "" && field == "" {
			field = fmt.Sprintf("%s of container %s", found, c.Name)
		}
	})
	return field
}

func unsupportedInContainer(c *corev1.Container) string {
	for _, rule := range c.RestartPolicyRules {
		if rule.Action != corev1.ContainerRestartRuleActionRestart {
			return fmt.Sprintf("restartPolicyRules.action: %s", rule.Action)
		}
	}
	for _, v := range c.Env {
		if v.ValueFrom != nil && v.ValueFrom.FileKeyRef != nil {
			return "env.valueFrom.fileKeyRef"
		}
	}
	switch {
	case len(c.VolumeDevices) > 0:
		return "volumeDevices"
	case c.SecurityContext != nil && asksAppArmor(c.SecurityContext.AppArmorProfile):
		return "securityContext.appArmorProfile"
	}
	return ""
}

// asksAppArmor reports whether a profile other than none is asked for;
// agent/containerd runs without AppArmor.
func asksAppArmor(p *corev1.AppArmorProfile) bool {
	return p != nil && p.Type != corev1.AppArmorProfileTypeUnconfined
}
