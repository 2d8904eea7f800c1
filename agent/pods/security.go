package pods

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// seccompDir is where profiles of type Localhost are, under the kubelet directory.
const seccompDir = "seccomp"

// Paths of /proc that a container does not see, or cannot write, unless its
// procMount is Unmasked (k8s.io/kubernetes/pkg/securitycontext).
var (
	maskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
		"/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// namespaces says which namespaces a pod shares with the node.
func namespaces(pod *corev1.Pod) *runtimeapi.NamespaceOption {
	mode := func(host bool, otherwise runtimeapi.NamespaceMode) runtimeapi.NamespaceMode {
		if host {
			return runtimeapi.NamespaceMode_NODE
		}
		return otherwise
	}
	pid := runtimeapi.NamespaceMode_CONTAINER
	if pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace {
		pid = runtimeapi.NamespaceMode_POD
	}
	return &runtimeapi.NamespaceOption{
		Network: mode(pod.Spec.HostNetwork, runtimeapi.NamespaceMode_POD),
		Ipc:     mode(pod.Spec.HostIPC, runtimeapi.NamespaceMode_POD),
		Pid:     mode(pod.Spec.HostPID, pid),
	}
}

// sandboxSecurity is the security context of a pod's sandbox.
func sandboxSecurity(pod *corev1.Pod) *runtimeapi.LinuxSandboxSecurityContext {
	out := &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(pod),
		Privileged:       hasPrivileged(pod),
		Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return out
	}
	out.RunAsUser, out.RunAsGroup = int64Value(sc.RunAsUser), int64Value(sc.RunAsGroup)
	out.SupplementalGroups = supplementalGroups(sc)
	out.SupplementalGroupsPolicy = groupsPolicy(sc)
	out.SelinuxOptions = selinux(sc.SELinuxOptions)
	return out
}

func hasPrivileged(pod *corev1.Pod) bool {
	found := false
	everyContainer(pod, func(c *corev1.Container) {
		found = found || c.SecurityContext != nil && isTrue(c.SecurityContext.Privileged)
	})
	return found
}

// containerSecurity is the security context of one container: its own
// settings over its pod's. uid and username are the image's user.
func (n node) containerSecurity(pod *corev1.Pod, c *corev1.Container, uid *int64, username string) (*runtimeapi.LinuxContainerSecurityContext, error) {
	sc := effectiveSecurity(pod, c)
	if err := verifyNonRoot(pod, c, sc, uid, username); err != nil {
		return nil, err
	}
	seccomp, err := n.seccompProfile(sc)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.LinuxContainerSecurityContext{
		Capabilities:     capabilities(sc.Capabilities),
		Privileged:       isTrue(sc.Privileged),
		NamespaceOptions: namespaces(pod),
		SelinuxOptions:   selinux(sc.SELinuxOptions),
		RunAsUser:        int64Value(sc.RunAsUser),
		RunAsGroup:       int64Value(sc.RunAsGroup),
		ReadonlyRootfs:   isTrue(sc.ReadOnlyRootFilesystem),
		NoNewPrivs:       sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation,
		Seccomp:          seccomp,
	}
	if out.RunAsUser == nil {
		out.RunAsUser, out.RunAsUsername = int64Value(uid), username
	}
	if sc.ProcMount == nil || *sc.ProcMount == corev1.DefaultProcMount {
		out.MaskedPaths, out.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	if psc := pod.Spec.SecurityContext; psc != nil {
		out.SupplementalGroups = supplementalGroups(psc)
		out.SupplementalGroupsPolicy = groupsPolicy(psc)
	}
	return out, nil
}

// effectiveSecurity lays a container's settings over its pod's.
func effectiveSecurity(pod *corev1.Pod, c *corev1.Container) corev1.SecurityContext {
	var out corev1.SecurityContext
	if c.SecurityContext != nil {
		out = *c.SecurityContext
	}
	psc := pod.Spec.SecurityContext
	if psc == nil {
		return out
	}
	inherit(&out.RunAsUser, psc.RunAsUser)
	inherit(&out.RunAsGroup, psc.RunAsGroup)
	inherit(&out.RunAsNonRoot, psc.RunAsNonRoot)
	inherit(&out.SELinuxOptions, psc.SELinuxOptions)
	inherit(&out.SeccompProfile, psc.SeccompProfile)
	return out
}

func inherit[T any](own **T, pods *T) {
	if *own == nil {
		*own = pods
	}
}

// verifyNonRoot checks runAsNonRoot, which only a numeric user can satisfy.
func verifyNonRoot(pod *corev1.Pod, c *corev1.Container, sc corev1.SecurityContext, uid *int64, username string) error {
	if !isTrue(sc.RunAsNonRoot) {
		return nil
	}
	suffix := fmt.Sprintf("(pod: %q, container: %s)", nameOf(pod), c.Name)
	switch {
	case sc.RunAsUser != nil && *sc.RunAsUser == 0:
		return fmt.Errorf("container's runAsUser breaks non-root policy %s", suffix)
	case sc.RunAsUser != nil:
		return nil
	case uid != nil && *uid == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", suffix)
	case uid == nil && username != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", username, suffix)
	}
	return nil
}

// seccompProfile translates the profile; none means unconfined, as in kubelet
// without seccompDefault.
func (n node) seccompProfile(sc corev1.SecurityContext) (*runtimeapi.SecurityProfile, error) {
	unconfined := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	if sc.SeccompProfile == nil || isTrue(sc.Privileged) {
		return unconfined, nil
	}
	switch sc.SeccompProfile.Type {
	case corev1.SeccompProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case corev1.SeccompProfileTypeLocalhost:
		profile := sc.SeccompProfile.LocalhostProfile
		if profile == nil || *profile == "" {
			return nil, errors.New("securityContext.seccompProfile.localhostProfile must be set if type is Localhost")
		}
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost,
			LocalhostRef: filepath.Join(n.kubeletDir, seccompDir, *profile)}, nil
	}
	return unconfined, nil
}

func supplementalGroups(sc *corev1.PodSecurityContext) []int64 {
	var out []int64
	if sc.FSGroup != nil {
		out = append(out, *sc.FSGroup)
	}
	return append(out, sc.SupplementalGroups...)
}

func groupsPolicy(sc *corev1.PodSecurityContext) runtimeapi.SupplementalGroupsPolicy {
	if sc.SupplementalGroupsPolicy != nil && *sc.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		return runtimeapi.SupplementalGroupsPolicy_Strict
	}
	return runtimeapi.SupplementalGroupsPolicy_Merge
}

func capabilities(c *corev1.Capabilities) *runtimeapi.Capability {
	if c == nil {
		return nil
	}
	names := func(list []corev1.Capability) []string {
		out := make([]string, len(list))
		for i, name := range list {
			out[i] = strings.TrimPrefix(string(name), "CAP_")
		}
		return out
	}
	return &runtimeapi.Capability{AddCapabilities: names(c.Add), DropCapabilities: names(c.Drop)}
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func int64Value(v *int64) *runtimeapi.Int64Value {
	if v == nil {
		return nil
	}
	return &runtimeapi.Int64Value{Value: *v}
}

func isTrue(b *bool) bool { return b != nil && *b }
