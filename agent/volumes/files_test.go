package volumes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestFilesOfConfigMapsAndSecrets(t *testing.T) {
	mode := func(m int32) *int32 { return &m }
	name := corev1.LocalObjectReference{Name: "conf"}
	for title, test := range map[string]struct {
		source corev1.VolumeSource
		group  *int64
		want   string
	}{
		"every key is a file with mode 0644": {
			corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: name}}, nil,
			"-rw-r--r-- 0:0 a=1\n-rw-r--r-- 0:0 b=2\n-rw-r--r-- 0:0 bin=\xff"},
		"defaultMode is that of every file": {
			corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "conf", DefaultMode: mode(0o400)}}, nil,
			"-r-------- 0:0 password=hush"},
		"fsGroup owns the files and may read them": {
			corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "conf", DefaultMode: mode(0o400)}}, ptr(int64(1001)),
			"-r--r----- 0:1001 password=hush"},
		"items choose keys, paths and modes": {
			corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: name, DefaultMode: mode(0o440),
				Items: []corev1.KeyToPath{{Key: "b", Path: "sub/dir/bb"}, {Key: "a", Path: "top", Mode: mode(0o111)}}}}, nil,
			"---x--x--x 0:0 top=1\n-r--r----- 0:0 sub/dir/bb=2"},
		"an optional ConfigMap that is not there gives an empty volume": {
			corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: ptr(true)}}, nil, ""},
		"an optional key that is not there is left out": {
			corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "conf", Optional: ptr(true),
				Items: []corev1.KeyToPath{{Key: "none", Path: "none"}}}}, nil, ""},
	} {
		t.Run(title, func(t *testing.T) {
			cm := configMap("conf", map[string]string{"a": "1", "b": "2"})
			cm.BinaryData = map[string][]byte{"bin": {0xff}}
			n := newNode(t, cm, secret("conf", map[string]string{"password": "hush"}))
			pod := podWith(volume(test.source))
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: test.group}
			mount := n.mount(pod)["v"]
			if got := tree(t, mount.HostPath); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
			if !mount.ReadOnly {
				t.Error("the volume can be written to")
			}
		})
	}
}

func TestVolumesLieWhereKubeletPutsThemAndSecretsInMemory(t *testing.T) {
	n := newNode(t, configMap("conf", nil), secret("conf", nil))
	pod := podWith(
		corev1.Volume{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
		corev1.Volume{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "conf"}}},
		corev1.Volume{Name: "d", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{}}},
		corev1.Volume{Name: "p", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}},
		corev1.Volume{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	)
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "unused", VolumeSource: corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}})
	mounts := n.mount(pod)
	if len(mounts) != 5 {
		t.Errorf("mounted %v", mounts)
	}
	for name, want := range map[string]struct {
		path   string
		memory bool
	}{
		"c": {"kubernetes.io~configmap/c", false},
		"s": {"kubernetes.io~secret/s", true},
		"d": {"kubernetes.io~downward-api/d", true},
		"p": {"kubernetes.io~projected/p", true},
		"e": {"kubernetes.io~empty-dir/e", false},
	} {
		if got := mounts[name].HostPath; got != filepath.Join(n.dir, "pods/11-22/volumes", want.path) {
			t.Errorf("%s is at %s", name, got)
		}
		if memory, err := isMountPoint(mounts[name].HostPath); err != nil || memory != want.memory {
			t.Errorf("%s is a mount: %t, %v", name, memory, err)
		}
	}
}

func TestTokensAreReadableByThoseTheyAreFor(t *testing.T) {
	projection := volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault", ExpirationSeconds: ptr(int64(600))}},
	}}})
	content := "token=token 1 for web [vault] 600 s"
	for title, test := range map[string]struct {
		pod, container *int64
		group          *int64
		want           string
	}{
		"all if nobody is named":           {nil, nil, nil, "-rw-r--r-- 0:0 "},
		"the user if all containers agree": {nil, ptr(int64(1000)), nil, "-rw------- 1000:0 "},
		"the pod's user":                   {ptr(int64(1002)), nil, nil, "-rw------- 1002:0 "},
		"fsGroup":                          {nil, nil, ptr(int64(10000)), "-rw-r----- 0:10000 "},
		"both":                             {ptr(int64(1002)), nil, ptr(int64(10000)), "-rw-r----- 1002:10000 "},
	} {
		t.Run(title, func(t *testing.T) {
			n := newNode(t)
			pod := podWith(projection)
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: test.pod, FSGroup: test.group}
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: test.container}
			if got := tree(t, n.mount(pod)["v"].HostPath); got != test.want+content {
				t.Errorf("got %s, want %s", got, test.want+content)
			}
		})
	}
}

func TestSourcesOfAProjectedVolumeAreJoined(t *testing.T) {
	n := newNode(t, configMap("kube-root-ca.crt", map[string]string{"ca.crt": "CA"}), secret("s", map[string]string{"key": "k"}))
	name := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	pod := podWith(volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: ptr(int32(0o444)), Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: name("kube-root-ca.crt")}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: name("s"), Items: []corev1.KeyToPath{{Key: "key", Path: "private/key"}}}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}},
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}, Mode: ptr(int32(0o400))},
			{Path: "cpu", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "app", Resource: "limits.cpu"}},
		}}},
	}}}))
	want := strings.Join([]string{
		`-r-------- 0:0 labels=app="web"`,
		"-r--r--r-- 0:0 ca.crt=CA",
		"-r--r--r-- 0:0 cpu=2",
		"-r--r--r-- 0:0 namespace=default",
		"-r--r--r-- 0:0 private/key=k",
		"-r--r--r-- 0:0 token=token 1 for web [] 3600 s",
	}, "\n")
	if got := tree(t, n.mount(pod)["v"].HostPath); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFailuresNameTheVolumeAndTheObject(t *testing.T) {
	name := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	for title, test := range map[string]struct {
		source corev1.VolumeSource
		want   string
	}{
		"a missing ConfigMap": {
			corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: name("y")}},
			`MountVolume.SetUp failed for volume "v" : configmap "y" not found`},
		"a missing Secret": {
			corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "y"}},
			`MountVolume.SetUp failed for volume "v" : secret "y" not found`},
		"a missing key of a ConfigMap": {
			corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: name("conf"), Items: []corev1.KeyToPath{{Key: "k", Path: "k"}}}},
			`MountVolume.SetUp failed for volume "v" : configmap references non-existent config key: k`},
		"a missing key of a Secret": {
			corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "conf", Items: []corev1.KeyToPath{{Key: "k", Path: "k"}}}},
			`MountVolume.SetUp failed for volume "v" : references non-existent secret key: k`},
		"every missing source of a projected volume": {
			corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: name("x")}},
				{Secret: &corev1.SecretProjection{LocalObjectReference: name("y")}}}}},
			"MountVolume.SetUp failed for volume \"v\" : configmap \"x\" not found\nsecret \"y\" not found"},
		"a kind of volume that Weft does not have": {
			corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{Server: "s", Path: "/"}},
			`MountVolume.SetUp failed for volume "v" : volumes[name=v].nfs is not supported by Weft`},
		"a medium that Weft does not have": {
			corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "HugePages"}},
			`MountVolume.SetUp failed for volume "v" : volumes[name=v].emptyDir.medium "HugePages" is not supported by Weft`},
		"a claim that is not there": {
			corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "y"}},
			`MountVolume.SetUp failed for volume "v" : persistentvolumeclaim "y" not found`},
	} {
		t.Run(title, func(t *testing.T) {
			n := newNode(t, configMap("conf", nil), secret("conf", nil))
			if got := n.mountError(podWith(volume(test.source))); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestOneFailingVolumeDoesNotHoldUpTheOthers(t *testing.T) {
	n := newNode(t)
	bad := configMapVolume("none")
	bad.Name = "bad"
	mounts, err := n.Mount(t.Context(), podWith(bad, volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})))
	if err == nil || len(mounts) != 1 || mounts["v"].HostPath == "" {
		t.Errorf("got %v, %v", mounts, err)
	}
}

func TestChangedObjectsReachTheFiles(t *testing.T) {
	n := newNode(t, configMap("conf", map[string]string{"a": "1", "gone": "x"}), secret("conf", map[string]string{"k": "old"}))
	pod := podWith(
		corev1.Volume{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
		corev1.Volume{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "conf"}}},
		corev1.Volume{Name: "o", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "later"}, Optional: ptr(true)}}},
	)
	mounts := n.mount(pod)
	core := n.client.CoreV1()
	ctx := t.Context()
	if _, err := core.ConfigMaps("default").Update(ctx, configMap("conf", map[string]string{"a": "2", "b": "new"}), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := core.Secrets("default").Update(ctx, secret("conf", map[string]string{"k": "new"}), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := core.ConfigMaps("default").Create(ctx, configMap("later", map[string]string{"x": "y"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	becomes := func(name, want string) {
		t.Helper()
		eventually(t, name+" to hold "+want, func() bool { return tree(t, mounts[name].HostPath) == want })
	}
	becomes("c", "-rw-r--r-- 0:0 a=2\n-rw-r--r-- 0:0 b=new")
	becomes("s", "-rw-r--r-- 0:0 k=new")
	becomes("o", "-rw-r--r-- 0:0 x=y")
	for _, name := range []string{"conf", "later"} {
		if err := core.ConfigMaps("default").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	becomes("o", "")
	becomes("c", "-rw-r--r-- 0:0 a=2\n-rw-r--r-- 0:0 b=new") // what was mounted stays while its object is gone
}

func TestMountingAChangedPodUpdatesDownwardFiles(t *testing.T) {
	n := newNode(t)
	pod := podWith(volume(corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
		{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}))
	dir := n.mount(pod)["v"].HostPath
	pod = pod.DeepCopy()
	pod.Labels["app"] = "changed"
	n.mount(pod)
	if got := tree(t, dir); got != `-rw-r--r-- 0:0 labels=app="changed"` {
		t.Errorf("got %s", got)
	}
}

func TestAWriteKilledHalfwayDoesNotBlockTheNext(t *testing.T) {
	n := newNode(t, configMap("conf", map[string]string{"a": "1"}))
	dir := n.mount(podWith(configMapVolume("conf")))["v"].HostPath
	// The leftover appears whole: the volume may be written at any moment.
	unfinished := filepath.Join(n.dir, "unfinished")
	if err := os.MkdirAll(filepath.Join(unfinished, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(unfinished, filepath.Join(dir, "..2020_unfinished")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..2020_unfinished", filepath.Join(dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.CoreV1().ConfigMaps("default").Update(t.Context(), configMap("conf", map[string]string{"a": "2"}), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the update", func() bool { return tree(t, dir) == "-rw-r--r-- 0:0 a=2" })
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("the volume holds %v, want ..data, its target and a", entries)
	}
}
