package pods

import (
	"context"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/volumes/downward"
)

func testNode(t *testing.T) node {
	t.Helper()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("# the node's\nnameserver 9.9.9.9\nsearch corp.test. other.test\noptions edns0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return node{logDir: "/logs", kubeletDir: "/kubelet", cgroupParent: "/weft/n1", dns: resolver{
		clusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, clusterDomain: "cluster.local", hostFile: file}}
}

func TestDNSPolicies(t *testing.T) {
	const cluster = "10.96.0.10 | default.svc.cluster.local svc.cluster.local cluster.local corp.test other.test | ndots:5"
	for name, test := range map[string]struct{ pod, want string }{
		"ClusterFirst":                         {"spec: {dnsPolicy: ClusterFirst}", cluster},
		"ClusterFirst on the host's network":   {"spec: {dnsPolicy: ClusterFirst, hostNetwork: true}", "9.9.9.9 | corp.test other.test | edns0"},
		"ClusterFirstWithHostNet":              {"spec: {dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true}", cluster},
		"Default":                              {"spec: {dnsPolicy: Default}", "9.9.9.9 | corp.test other.test | edns0"},
		"None takes only what the pod says":    {"spec: {dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1], searches: [a.b]}}", "1.1.1.1 | a.b | "},
		"options of the pod replace the same":  {"spec: {dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1], options: [{name: ndots, value: \"2\"}, {name: debug}]}}", "1.1.1.1 |  | ndots:2 debug"},
		"the pod adds to ClusterFirst":         {"spec: {dnsPolicy: ClusterFirst, dnsConfig: {options: [{name: ndots, value: \"1\"}]}}", strings.Replace(cluster, "ndots:5", "ndots:1", 1)},
		"three nameservers are all that count": {"spec: {dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4]}}", "1.1.1.1 1.1.1.2 1.1.1.3 |  | "},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := testNode(t).dns.config(podFrom(t, test.pod))
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join([]string{strings.Join(config.Servers, " "), strings.Join(config.Searches, " "), strings.Join(config.Options, " ")}, " | ")
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestSandboxOfAPod(t *testing.T) {
	config, err := testNode(t).sandboxConfig(podFrom(t, `
status: {qosClass: Burstable}
spec:
  hostname: h
  subdomain: sub
  setHostnameAsFQDN: true
  shareProcessNamespace: true
  securityContext: {runAsUser: 7, fsGroup: 8, supplementalGroups: [9], sysctls: [{name: net/ipv4/ip_unprivileged_port_start, value: "0"}]}
  containers: [{name: app, ports: [{containerPort: 80, hostPort: 8080, protocol: UDP}]}]
`), 3)
	if err != nil {
		t.Fatal(err)
	}
	if config.Hostname != "h.sub.default.svc.cluster.local" || config.Metadata.Attempt != 3 || config.LogDirectory != "/logs/default_web_uid-web" {
		t.Errorf("hostname %q, attempt %d, logs %q", config.Hostname, config.Metadata.Attempt, config.LogDirectory)
	}
	if p := config.PortMappings; len(p) != 1 || p[0].HostPort != 8080 || p[0].Protocol != runtimeapi.Protocol_UDP {
		t.Errorf("ports %v", p)
	}
	linux := config.Linux
	if linux.CgroupParent != "/weft/n1/kubepods/burstable/poduid-web" || linux.Sysctls["net.ipv4.ip_unprivileged_port_start"] != "0" {
		t.Errorf("cgroup %q, sysctls %v", linux.CgroupParent, linux.Sysctls)
	}
	security := linux.SecurityContext
	if security.NamespaceOptions.Pid != runtimeapi.NamespaceMode_POD || security.RunAsUser.Value != 7 || !slices.Equal(security.SupplementalGroups, []int64{8, 9}) {
		t.Errorf("security %v", security)
	}
}

func TestHostNetworkHasNeitherHostnameNorPortMappings(t *testing.T) {
	config, err := testNode(t).sandboxConfig(podFrom(t, "spec: {hostNetwork: true, containers: [{name: app, ports: [{containerPort: 80, hostPort: 80}]}]}"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if config.Hostname != "" || len(config.PortMappings) > 0 || config.Linux.SecurityContext.NamespaceOptions.Network != runtimeapi.NamespaceMode_NODE {
		t.Errorf("got %v", config)
	}
}

func TestContainerResources(t *testing.T) {
	for name, test := range map[string]struct {
		pod                               string
		shares, quota, memory, oomScoreAd int64
	}{
		"nothing asked":           {"status: {qosClass: BestEffort}\nspec: {containers: [{name: app}]}", 2, 0, 0, 1000},
		"limits give requests":    {"status: {qosClass: Guaranteed}\nspec: {containers: [{name: app, resources: {limits: {cpu: 500m, memory: 1Gi}}}]}", 512, 50000, 1 << 30, -997},
		"a quarter of the memory": {"status: {qosClass: Burstable}\nspec: {containers: [{name: app, resources: {requests: {memory: 1Gi}}}]}", 2, 0, 0, 750},
		"a tiny limit is raised":  {"status: {qosClass: Burstable}\nspec: {containers: [{name: app, resources: {limits: {cpu: 1m}}}]}", 2, 1000, 0, 999},
		"critical pods come last": {"status: {qosClass: BestEffort}\nspec: {priority: 2000000000, containers: [{name: app}]}", 2, 0, 0, -997},
		"the pod's limit reaches": {"status: {qosClass: Burstable}\nspec: {resources: {limits: {memory: 1Gi}}, containers: [{name: app}]}", 2, 0, 1 << 30, 999},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podFrom(t, test.pod)
			got := containerResources(pod, &pod.Spec.Containers[0], 4<<30)
			if got.CpuShares != test.shares || got.CpuQuota != test.quota || got.MemoryLimitInBytes != test.memory || got.OomScoreAdj != test.oomScoreAd {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestPodIsLimitedOnlyIfAllOfItIs(t *testing.T) {
	half := podResources(podFrom(t, "spec: {containers: [{name: a, resources: {limits: {memory: 1Gi}}}, {name: b}]}"))
	whole := podResources(podFrom(t, "spec: {containers: [{name: a, resources: {limits: {memory: 1Gi}}}, {name: b, resources: {limits: {memory: 1Gi}}}]}"))
	if half.MemoryLimitInBytes != 0 || whole.MemoryLimitInBytes != 2<<30 {
		t.Errorf("got %d and %d", half.MemoryLimitInBytes, whole.MemoryLimitInBytes)
	}
}

func TestContainerSecurity(t *testing.T) {
	root, user := int64(0), int64(65532)
	for name, test := range map[string]struct {
		pod      string
		uid      *int64
		username string
		want     string // error, or ""
	}{
		"root is refused":                {"spec: {securityContext: {runAsNonRoot: true}, containers: [{name: app}]}", &root, "", "container has runAsNonRoot and image will run as root"},
		"a name cannot be verified":      {"spec: {securityContext: {runAsNonRoot: true}, containers: [{name: app}]}", nil, "www", "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root"},
		"a user of the image is fine":    {"spec: {securityContext: {runAsNonRoot: true}, containers: [{name: app}]}", &user, "", ""},
		"the container overrides":        {"spec: {securityContext: {runAsNonRoot: true}, containers: [{name: app, securityContext: {runAsNonRoot: false}}]}", &root, "", ""},
		"a local profile needs its name": {"spec: {securityContext: {seccompProfile: {type: Localhost}}, containers: [{name: app}]}", nil, "", "securityContext.seccompProfile.localhostProfile must be set"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podFrom(t, test.pod)
			_, err := testNode(t).containerSecurity(pod, &pod.Spec.Containers[0], test.uid, test.username)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	pod := podFrom(t, `
spec:
  securityContext: {runAsUser: 1, runAsGroup: 2, fsGroup: 3, seccompProfile: {type: RuntimeDefault}}
  containers: [{name: app, securityContext: {runAsUser: 5, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {add: [NET_ADMIN], drop: [ALL]}, procMount: Unmasked}}]`)
	got, err := testNode(t).containerSecurity(pod, &pod.Spec.Containers[0], nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if got.RunAsUser.Value != 5 || got.RunAsGroup.Value != 2 || !got.ReadonlyRootfs || !got.NoNewPrivs || got.Capabilities.DropCapabilities[0] != "ALL" ||
		len(got.MaskedPaths) != 0 || got.Seccomp.ProfileType != runtimeapi.SecurityProfile_RuntimeDefault || !slices.Equal(got.SupplementalGroups, []int64{3}) {
		t.Errorf("got %v", got)
	}
}

func TestEnvironment(t *testing.T) {
	service := func(namespace, name, ip string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}
	}
	objects := &fakeObjects{configMaps: map[string]*corev1.ConfigMap{}}
	objects.set("settings", map[string]string{"A": "from map", "B": "b"})
	e := environment{objects: objects, addresses: downward.Addresses{PodIPs: []string{"10.0.0.1"}},
		services: []*corev1.Service{service("default", "kubernetes", "10.96.0.1"), service("default", "my-db", "10.96.0.2"),
			service("other", "far", "10.96.0.3"), service("default", "headless", "None")}}
	pod := podFrom(t, `
spec:
  containers:
  - name: app
    args: [$(A), $(NONE), $$(A)]
    envFrom: [{prefix: X_, configMapRef: {name: settings}}, {configMapRef: {name: gone, optional: true}}]
    env:
    - {name: A, value: own $(X_B) $(MY_DB_SERVICE_HOST)}
    - {name: KEY, valueFrom: {configMapKeyRef: {name: settings, key: A}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MAYBE, valueFrom: {secretKeyRef: {name: gone, key: k, optional: true}}}
`)
	got, err := e.of(context.Background(), pod, &pod.Spec.Containers[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"A": "own b 10.96.0.2", "X_A": "from map", "KEY": "from map", "IP": "10.0.0.1",
		"KUBERNETES_SERVICE_HOST": "10.96.0.1", "MY_DB_SERVICE_PORT_HTTP": "80", "MY_DB_PORT": "tcp://10.96.0.2:80", "MY_DB_PORT_80_TCP_ADDR": "10.96.0.2",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	for _, name := range []string{"MAYBE", "FAR_SERVICE_HOST", "HEADLESS_SERVICE_HOST"} {
		if _, has := got[name]; has {
			t.Errorf("%s is set; all: %v", name, slices.Sorted(maps.Keys(got)))
		}
	}
	if args := strings.Join(expandAll(pod.Spec.Containers[0].Args, got), " "); args != "own b 10.96.0.2 $(NONE) $(A)" {
		t.Errorf("arguments are %q", args)
	}
	no := false
	pod.Spec.EnableServiceLinks = &no
	got, err = e.of(context.Background(), pod, &corev1.Container{})
	if _, has := got["MY_DB_SERVICE_HOST"]; has || err != nil || got["KUBERNETES_SERVICE_HOST"] == "" {
		t.Errorf("without links: %v, %v", got, err)
	}
}

func TestSubPathsStayInside(t *testing.T) {
	env := map[string]string{"DIR": "logs", "UP": "..", "ROOT": "/etc"}
	for name, test := range map[string]struct{ subPath, expr, want string }{
		"plain":    {"a/b", "", "a/b"},
		"expanded": {"", "$(DIR)/x", "logs/x"},
		"missing":  {"", "$(NONE)", ""},
		"upwards":  {"", "a/$(UP)", ""},
		"absolute": {"", "$(ROOT)", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := expandSubPath(corev1.VolumeMount{SubPath: test.subPath, SubPathExpr: test.expr}, env)
			if (err != nil) != (test.want == "") || err == nil && got.SubPath != test.want {
				t.Errorf("got %q, %v", got.SubPath, err)
			}
		})
	}
}

func TestHostsFile(t *testing.T) {
	pod := podFrom(t, "spec: {hostname: h, subdomain: sub, hostAliases: [{ip: 1.2.3.4, hostnames: [a, b]}]}")
	got := hostsFile(pod, []string{"10.0.0.1"}, "cluster.local")
	for _, line := range []string{"# Kubernetes-managed hosts file.\n", "10.0.0.1\th.sub.default.svc.cluster.local\th\n", "# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"} {
		if !strings.Contains(got, line) {
			t.Errorf("no %q in\n%s", line, got)
		}
	}
}

func TestTerminationMessage(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	log := write("log", "2030-01-01T00:00:00Z stdout F first\n2030-01-01T00:00:00Z stderr P sec\n2030-01-01T00:00:00Z stderr F ond\n")
	status := func(file, policy string, code int32) *runtimeapi.ContainerStatus {
		return &runtimeapi.ContainerStatus{ExitCode: code, LogPath: log,
			Annotations: map[string]string{annotationMessagePath: "/msg", annotationMessagePolicy: policy},
			Mounts:      []*runtimeapi.Mount{{ContainerPath: "/msg", HostPath: file}}}
	}
	for name, test := range map[string]struct {
		status *runtimeapi.ContainerStatus
		want   string
	}{
		"the file":                        {status(write("m", "bye"), "File", 1), "bye"},
		"an empty file":                   {status(write("e", ""), "File", 1), ""},
		"the log, if asked, after errors": {status(write("e", ""), "FallbackToLogsOnError", 1), "first\nsecond\n"},
		"not the log after success":       {status(write("e", ""), "FallbackToLogsOnError", 0), ""},
		"the file before the log":         {status(write("m", "bye"), "FallbackToLogsOnError", 1), "bye"},
		"the end of a long file":          {status(write("l", strings.Repeat("x", 5000)+"end"), "File", 1), strings.Repeat("x", maxMessage-3) + "end"},
		"no file":                         {status("/nowhere", "File", 1), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := terminationMessage(test.status); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestCredentialsFitTheirRegistry(t *testing.T) {
	for name, test := range map[string]struct {
		registry, image string
		want            bool
	}{
		"Docker Hub":       {"https://index.docker.io/v1/", "busybox", true},
		"a host":           {"registry.test", "registry.test/a/b:1", true},
		"another host":     {"registry.test", "other.test/a", false},
		"a port":           {"registry.test:5000", "registry.test:5000/a", true},
		"a path":           {"registry.test/team", "registry.test/team/a", true},
		"a path's sibling": {"registry.test/team", "registry.test/teams/a", false},
		"a wildcard":       {"*.test", "registry.test/a", true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := registryMatches(test.registry, test.image); got != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
