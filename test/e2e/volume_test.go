package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// keeper is a Deployment of one pod that keeps files in /data, and its claim.
func keeper(class string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  %s
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 10Mi}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: keeper}
spec:
  strategy: {type: Recreate}
  selector: {matchLabels: {app: keeper}}
  template:
    metadata: {labels: {app: keeper}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {runAsUser: 1234}
      containers:
      - name: keeper
        image: registry.weft.local/busybox:1
        command: [sleep, infinity]
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`, class)
}

// volumePath returns the name of a claim's volume and the directory of the
// node that it is.
func volumePath(t *testing.T, ns, claim string) (name, path string) {
	t.Helper()
	pvc, err := client.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), claim, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pv, err := client.CoreV1().PersistentVolumes().Get(t.Context(), pvc.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pv.Name, pv.Spec.Local.Path
}

func isGone(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is still there: %v", path, err)
	}
	return nil
}

func TestDataOutlivesItsPodAndGoesWithItsClaim(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, keeper(""))
	available(t, ns, "keeper")
	kubectl("-n", ns, "exec", "deploy/keeper", "--", "sh", "-c", "echo precious > /data/file").must(t)
	kubectl("-n", ns, "delete", "pod", "-l", "app=keeper").must(t)
	// The Deployment may not have heard yet that its pod is gone.
	eventually(t, 30*time.Second, "the next pod has the data", func() error {
		out, err := kubectl("-n", ns, "exec", "deploy/keeper", "--", "cat", "/data/file").output()
		if err == nil && out != "precious\n" {
			err = fmt.Errorf("it reads %q", out)
		}
		return err
	})
	volume, path := volumePath(t, ns, "data")
	kubectl("-n", ns, "delete", "pvc/data", "--wait=false").must(t)
	time.Sleep(2 * time.Second)
	if _, err := os.Stat(path + "/file"); err != nil {
		t.Errorf("a claim in use was deleted, and its data went: %v", err)
	}
	kubectl("-n", ns, "delete", "deploy/keeper").must(t)
	eventually(t, 30*time.Second, "data and volume go", func() error {
		if err := isGone(path); err != nil {
			return err
		}
		_, err := client.CoreV1().PersistentVolumes().Get(t.Context(), volume, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("the volume is still there: %v", err)
		}
		return nil
	})
}

func TestDataOfARetainedVolumeStays(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: `+ns+`}
provisioner: weft.dev/local
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Retain
`)
	t.Cleanup(func() { kubectl("delete", "storageclass", ns).run() })
	apply(t, ns, keeper("storageClassName: "+ns))
	available(t, ns, "keeper")
	kubectl("-n", ns, "exec", "deploy/keeper", "--", "sh", "-c", "echo precious > /data/file").must(t)
	volume, path := volumePath(t, ns, "data")
	kubectl("-n", ns, "delete", "deploy/keeper", "pvc/data").must(t)
	eventually(t, 20*time.Second, "the volume is released", func() error {
		pv, err := client.CoreV1().PersistentVolumes().Get(t.Context(), volume, metav1.GetOptions{})
		if err == nil && pv.Status.Phase != "Released" {
			err = fmt.Errorf("phase %s", pv.Status.Phase)
		}
		return err
	})
	kubectl("delete", "pv", volume, "--timeout=20s").must(t)
	time.Sleep(time.Second)
	if content, err := os.ReadFile(path + "/file"); string(content) != "precious\n" {
		t.Errorf("the data is %q, %v", content, err)
	}
}

func TestABlockClaimSaysWhyItGetsNoVolume(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk}
spec:
  volumeMode: Block
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 10Mi}}
`)
	eventually(t, 10*time.Second, "there is an event", func() error {
		out, err := kubectl("-n", ns, "get", "events", "--field-selector=reason=ProvisioningFailed", "-o", "jsonpath={.items[*].message}").output()
		if err == nil && !strings.Contains(out, "spec.volumeMode: Block is not supported") {
			err = fmt.Errorf("events say %q", out)
		}
		return err
	})
}

func TestEachPodOfAStatefulSetKeepsItsOwnData(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: db
        image: registry.weft.local/busybox:1
        command: [sh, -c, "hostname >> /data/starts; exec sleep infinity"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 10Mi}}
`)
	podReady(t, ns, "db-0")
	first := podReady(t, ns, "db-1")
	kubectl("-n", ns, "delete", "pod", "db-1").must(t)
	eventually(t, time.Minute, "db-1 is there again and reads its data", func() error {
		out, err := kubectl("-n", ns, "exec", "db-1", "--", "cat", "/data/starts").output()
		if err == nil && out != "db-1\ndb-1\n" {
			err = fmt.Errorf("it reads %q", out)
		}
		return err
	})
	if again := podReady(t, ns, "db-1"); again.Spec.NodeName != first.Spec.NodeName {
		t.Errorf("it moved from %s to %s", first.Spec.NodeName, again.Spec.NodeName)
	}
	_, path0 := volumePath(t, ns, "data-db-0")
	_, path1 := volumePath(t, ns, "data-db-1")
	kubectl("-n", ns, "delete", "statefulset", "db").must(t)
	eventually(t, 40*time.Second, "the data goes with the StatefulSet", func() error {
		return errors.Join(isGone(path0), isGone(path1))
	})
}

func TestVolumesAreMadeAndDeletedAcrossKills(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, keeper(""))
	killProgram(t, "node-1", "server")
	eventually(t, time.Minute, "the API server is back", func() error { return kubectl("get", "--raw", "/readyz").run() })
	eventually(t, 2*time.Minute, "the pod has its volume", func() error {
		return kubectl("-n", ns, "exec", "deploy/keeper", "--", "sh", "-c", "for i in $(seq 2000); do echo x > /data/$i; done").run()
	})
	_, path := volumePath(t, ns, "data")
	node := strings.Split(strings.TrimPrefix(path, "/var/lib/weft/"+name+"/nodes/"), "/")[0]
	kubectl("-n", ns, "delete", "deploy/keeper", "pvc/data", "--wait=false").must(t)
	for range 3 {
		killProgram(t, node, "agent")
	}
	eventually(t, time.Minute, "the data is gone", func() error { return isGone(path) })
}
