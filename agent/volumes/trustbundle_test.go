package volumes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func bundle(name, signer string, labels map[string]string, certificates ...string) *certificatesv1.ClusterTrustBundle {
	b := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	b.Spec.SignerName = signer
	for _, c := range certificates {
		b.Spec.TrustBundle += "a comment\n" + chain(c)
	}
	return b
}

func trustVolume(projection corev1.ClusterTrustBundleProjection) corev1.Volume {
	projection.Path = "ca.pem"
	return volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ClusterTrustBundle: &projection}},
	}})
}

func TestTrustBundlesAreSelectedByNameOrSigner(t *testing.T) {
	live := map[string]string{"stage": "live"}
	everything := &metav1.LabelSelector{}
	for title, test := range map[string]struct {
		projection corev1.ClusterTrustBundleProjection
		want       string
		fails      string
	}{
		"one by its name": {
			corev1.ClusterTrustBundleProjection{Name: ptr("other")}, chain("d"), ""},
		"all of a signer, each certificate once and in order": {
			corev1.ClusterTrustBundleProjection{SignerName: ptr(signer), LabelSelector: everything}, chain("a") + chain("b") + chain("c"), ""},
		"those of a signer with certain labels": {
			corev1.ClusterTrustBundleProjection{SignerName: ptr(signer), LabelSelector: &metav1.LabelSelector{MatchLabels: live}}, chain("a") + chain("c"), ""},
		"a signer without selector means none": {
			corev1.ClusterTrustBundleProjection{SignerName: ptr(signer)}, "", `no clustertrustbundle of signer "example.com/signer" matches <none>`},
		"a name that is not there": {
			corev1.ClusterTrustBundleProjection{Name: ptr("none")}, "", `clustertrustbundles.certificates.k8s.io "none" not found`},
		"an optional one that is not there is an empty file": {
			corev1.ClusterTrustBundleProjection{Name: ptr("none"), Optional: ptr(true)}, "", ""},
	} {
		t.Run(title, func(t *testing.T) {
			n := newNode(t, bundle("one", signer, nil, "b", "a"), bundle("two", signer, live, "c", "a"), bundle("other", "", nil, "d"))
			pod := podWith(trustVolume(test.projection))
			mounts, err := n.Mount(t.Context(), pod)
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) {
					t.Errorf("got error %v, want %s", err, test.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(mounts["v"].HostPath, "ca.pem"))
			if err != nil || string(got) != test.want {
				t.Errorf("got %s %v, want %s", got, err, test.want)
			}
		})
	}
}

func TestAChangedTrustBundleReachesRunningPods(t *testing.T) {
	n := newNode(t, bundle("one", "", nil, "a"))
	mounts := n.mount(podWith(trustVolume(corev1.ClusterTrustBundleProjection{Name: ptr("one")})))
	if _, err := n.client.CertificatesV1().ClusterTrustBundles().Update(t.Context(), bundle("one", "", nil, "b"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(mounts["v"].HostPath, "ca.pem")
	eventually(t, "the new certificate", func() bool {
		got, _ := os.ReadFile(path)
		return string(got) == chain("b")
	})
}
