package volumes

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// describe prints mode, owner and group of a path.
func describe(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%s %d:%d", info.Mode(), stat.Uid, stat.Gid)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func bind(t *testing.T, source, target string) {
	t.Helper()
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

func emptyDir(medium corev1.StorageMedium, limit string) corev1.Volume {
	source := &corev1.EmptyDirVolumeSource{Medium: medium}
	if limit != "" {
		source.SizeLimit = ptr(resource.MustParse(limit))
	}
	return volume(corev1.VolumeSource{EmptyDir: source})
}

func TestEmptyDirModesAndOwners(t *testing.T) {
	for title, test := range map[string]struct {
		medium corev1.StorageMedium
		group  *int64
		want   string
	}{
		"on disk everybody may write":   {"", nil, "drwxrwxrwx 0:0"},
		"on disk fsGroup owns":          {"", ptr(int64(123)), "dgrwxrwxrwx 0:123"},
		"in memory everybody may write": {"Memory", nil, "dtrwxrwxrwx 0:0"},
		"in memory fsGroup owns":        {"Memory", ptr(int64(123)), "dgtrwxrwxrwx 0:123"},
	} {
		t.Run(title, func(t *testing.T) {
			old := syscall.Umask(0o077)
			defer syscall.Umask(old)
			n := newNode(t)
			pod := podWith(emptyDir(test.medium, ""))
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: test.group}
			if got := describe(t, n.mount(pod)["v"].HostPath); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestEmptyDirKeepsItsContentWhenMountedAgain(t *testing.T) {
	for _, medium := range []corev1.StorageMedium{"", "Memory"} {
		t.Run("medium "+string(medium), func(t *testing.T) {
			n := newNode(t)
			pod := podWith(emptyDir(medium, ""))
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(123))}
			file := filepath.Join(n.mount(pod)["v"].HostPath, "data")
			write(t, file, "precious")
			n.mount(pod)
			if got, err := os.ReadFile(file); err != nil || string(got) != "precious" {
				t.Errorf("got %q, %v", got, err)
			}
			if got := describe(t, file); got != "-rw------- 0:123" {
				t.Errorf("mounting again changed the pod's file: %s", got)
			}
		})
	}
}

func TestMemoryVolumesHoldNoMoreThanTheyMay(t *testing.T) {
	limited := corev1.ResourceRequirements{Limits: corev1.ResourceList{"memory": resource.MustParse("8Mi")}}
	for title, test := range map[string]struct {
		limit     string
		resources corev1.ResourceRequirements
		wantMiB   uint64
	}{
		"sizeLimit":                         {"4Mi", corev1.ResourceRequirements{}, 4},
		"else the pod's memory limit":       {"", limited, 8},
		"the pod's memory limit if smaller": {"16Mi", limited, 8},
		"else what the node can allocate":   {"", corev1.ResourceRequirements{}, 1024},
	} {
		t.Run(title, func(t *testing.T) {
			n := newNode(t)
			pod := podWith(emptyDir("Memory", test.limit))
			pod.Spec.Containers[0].Resources = test.resources
			var stat unix.Statfs_t
			if err := unix.Statfs(n.mount(pod)["v"].HostPath, &stat); err != nil {
				t.Fatal(err)
			}
			if got := stat.Blocks * uint64(stat.Bsize) >> 20; got != test.wantMiB {
				t.Errorf("got %d MiB, want %d", got, test.wantMiB)
			}
		})
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("file"), "")
	socket, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for _, test := range []struct {
		title, path string
		kind        corev1.HostPathType
		want        string
	}{
		{"no type checks nothing", at("none"), "", ""},
		{"a directory", dir, corev1.HostPathDirectory, ""},
		{"a directory that is a file", at("file"), corev1.HostPathDirectory, "hostPath type check failed: " + at("file") + " is not a directory, it's a File"},
		{"a directory that is not there", at("none"), corev1.HostPathDirectory,
			"hostPath type check failed, " + at("none") + " is not a directory, unable to determine its type: path \"" + at("none") + "\" does not exist"},
		{"a directory to create", at("new/dir"), corev1.HostPathDirectoryOrCreate, ""},
		{"a directory created before", at("new/dir"), corev1.HostPathDirectoryOrCreate, ""},
		{"a directory to create where a file is", at("file"), corev1.HostPathDirectoryOrCreate, "hostPath type check failed: " + at("file") + " is not a directory, it's a File"},
		{"a file", at("file"), corev1.HostPathFile, ""},
		{"a file to create", at("new/file"), corev1.HostPathFileOrCreate, ""},
		{"a file that is a socket", at("socket"), corev1.HostPathFile, "hostPath type check failed: " + at("socket") + " is not a file, it's a Socket"},
		{"a socket", at("socket"), corev1.HostPathSocket, ""},
		{"a character device", "/dev/null", corev1.HostPathCharDev, ""},
		{"a block device that is a character device", "/dev/null", corev1.HostPathBlockDev, "hostPath type check failed: /dev/null is not a block device, it's a CharDevice"},
		{"a type that is none", dir, "Folder", `hostPath.type: "Folder" is not a type`},
		{"a way out", dir + "/../x", "", "invalid HostPath `" + dir + "/../x`: must not contain '..'"},
	} {
		t.Run(test.title, func(t *testing.T) {
			err := checkHostPath(&corev1.HostPathVolumeSource{Path: test.path, Type: &test.kind})
			if got := fmt.Sprint(err); err == nil && test.want != "" || err != nil && got != test.want {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	if got := describe(t, at("new/file")); got != "-rw-r--r-- 0:0" {
		t.Errorf("the created file is %s", got)
	}
}

func claimed(source corev1.PersistentVolumeSource, change ...func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", UID: "claim"},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv"},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv"},
		Spec:       corev1.PersistentVolumeSpec{PersistentVolumeSource: source, ClaimRef: &corev1.ObjectReference{UID: "claim"}},
	}
	for _, c := range change {
		c(claim, pv)
	}
	return claim, pv
}

func claimVolume(readOnly bool) corev1.Volume {
	return volume(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data", ReadOnly: readOnly}})
}

func TestClaimedVolumesAreUsedInPlace(t *testing.T) {
	for title, test := range map[string]struct {
		source func(path string) corev1.PersistentVolumeSource
		owner  string
	}{
		"a hostPath volume keeps its owner": {func(path string) corev1.PersistentVolumeSource {
			return corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}
		}, "drwxr-xr-x 0:0"},
		"a local volume is given to fsGroup": {func(path string) corev1.PersistentVolumeSource {
			return corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}}
		}, "dgrwxrwxr-x 0:77"},
	} {
		t.Run(title, func(t *testing.T) {
			dir := t.TempDir()
			claim, pv := claimed(test.source(dir))
			n := newNode(t, claim, pv)
			pod := podWith(claimVolume(true))
			mount := n.mount(pod)["v"]
			if mount != (Mount{HostPath: dir, ReadOnly: true}) {
				t.Errorf("got %+v", mount)
			}
			pod = podWith(claimVolume(false))
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(77))}
			if mount := n.mount(pod)["v"]; mount != (Mount{HostPath: dir}) {
				t.Errorf("got %+v", mount)
			}
			if got := describe(t, dir); got != test.owner {
				t.Errorf("the directory is %s, want %s", got, test.owner)
			}
		})
	}
}

func TestALocalVolumeIsGivenAwayOncePerPodAndByPolicy(t *testing.T) {
	dir := t.TempDir()
	claim, pv := claimed(corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir}})
	n := newNode(t, claim, pv)
	pod := podWith(claimVolume(false))
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(77)), FSGroupChangePolicy: ptr(corev1.FSGroupChangeOnRootMismatch)}
	file := filepath.Join(dir, "file")
	write(t, file, "")
	n.mount(pod)
	if got := describe(t, file); got != "-rw-rw---- 0:77" {
		t.Errorf("the file is %s", got)
	}
	if err := os.Chown(file, 0, 0); err != nil {
		t.Fatal(err)
	}
	n.mount(pod)
	other := pod.DeepCopy()
	other.UID = "another"
	n.mount(other)
	if got := describe(t, file); got != "-rw-rw---- 0:0" {
		t.Errorf("the root matched, yet the file became %s", got)
	}
	other.UID = "always"
	other.Spec.SecurityContext.FSGroupChangePolicy = nil
	n.mount(other)
	if got := describe(t, file); got != "-rw-rw---- 0:77" {
		t.Errorf("by default the file is changed again, but is %s", got)
	}
}

func TestClaimsThatCannotBeMounted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	host := corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}
	type edit = func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)
	for want, test := range map[string]struct {
		source corev1.PersistentVolumeSource
		edit   edit
	}{
		`persistentvolumeclaim "data" is not bound`: {host, func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) { c.Status.Phase = "Pending" }},
		`persistentvolumeclaim "data" is being deleted`: {host, func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			c.DeletionTimestamp = &metav1.Time{}
		}},
		`persistentvolume "other" not found`:                                 {host, func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) { c.Spec.VolumeName = "other" }},
		`persistentvolume "pv" is not bound to persistentvolumeclaim "data"`: {host, func(_ *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "x" }},
		`persistentvolume "pv": spec.volumeMode Block is not supported by Weft`: {host, func(_ *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) {
			v.Spec.VolumeMode = ptr(corev1.PersistentVolumeBlock)
		}},
		`persistentvolume "pv": spec.nfs is not supported by Weft`:                                            {corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{}}, nil},
		`persistentvolume "pv": spec.csi is not supported by Weft`:                                            {corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{}}, nil},
		`persistentvolume "pv": spec.local.path: path "/no/such" does not exist`:                              {corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/no/such"}}, nil},
		`persistentvolume "pv": spec.local.path: ` + file + ` is not a directory, and Weft mounts no devices`: {corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: file}}, nil},
	} {
		t.Run(want, func(t *testing.T) {
			edits := []edit{}
			if test.edit != nil {
				edits = append(edits, test.edit)
			}
			claim, pv := claimed(test.source, edits...)
			n := newNode(t, claim, pv)
			if got := n.mountError(podWith(claimVolume(false))); got != `MountVolume.SetUp failed for volume "v" : `+want {
				t.Errorf("got %s", got)
			}
		})
	}
}

func TestAnEphemeralVolumeMustBelongToItsPod(t *testing.T) {
	claim, pv := claimed(corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv"}})
	claim.Name = "web-v"
	n := newNode(t, claim, pv)
	pod := podWith(volume(corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}))
	if got := n.mountError(pod); !strings.Contains(got, "web-v was not created for pod default/web") {
		t.Errorf("got %s", got)
	}
	claim.OwnerReferences = []metav1.OwnerReference{{UID: pod.UID, Controller: ptr(true)}}
	if _, err := n.client.CoreV1().PersistentVolumeClaims("default").Update(t.Context(), claim, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := n.mount(pod)["v"].HostPath; got != "/srv" {
		t.Errorf("got %s", got)
	}
}

func TestBlockDevicesAreRefused(t *testing.T) {
	claim, pv := claimed(corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}})
	n := newNode(t, claim, pv)
	pod := podWith(claimVolume(false))
	pod.Spec.Containers[0].VolumeMounts = nil
	pod.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "v", DevicePath: "/dev/x"}}
	if got := n.mountError(pod); got != `MountVolume.SetUp failed for volume "v" : volumeDevices[name=v] is not supported by Weft` {
		t.Errorf("got %s", got)
	}
}
