package volumes

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const signer = "example.com/signer"

// signed is a pod's projection together with the signer that answers it.
type signed struct {
	*certificates
	client *fake.Clientset
	asked  int
	told   int
	t      *testing.T
}

func newSigned(t *testing.T) *signed {
	client := fake.NewClientset(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "node-uid"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: podWith().Namespace, Name: "robot", UID: "robot-uid"}},
	)
	s := &signed{client: client, t: t}
	client.PrependReactor("create", "podcertificaterequests", func(action clienttesting.Action) (bool, runtime.Object, error) {
		s.asked++
		request := action.(clienttesting.CreateAction).GetObject().(*certificatesv1.PodCertificateRequest)
		request.Name = fmt.Sprint(request.GenerateName, s.asked)
		request.ResourceVersion = fmt.Sprint(10 * s.asked)
		return false, request, nil
	})
	s.certificates = &certificates{
		ctx: t.Context(), client: client, nodeName: "node", log: slog.New(slog.DiscardHandler),
		tell: func(types.UID) { s.told++ }, known: map[certificateKey]*certificate{}, changed: make(chan struct{}),
	}
	return s
}

// now returns the chain of the projection, or the error.
func (s *signed) now() string {
	pod := podWith()
	projection := &corev1.PodCertificateProjection{SignerName: signer, KeyType: "ED25519", UserAnnotations: map[string]string{"team": "blue"}}
	issued, err := s.get(s.t.Context(), pod, certificateKey{pod.UID, "v", 0}, projection)
	if err != nil {
		return err.Error()
	}
	if block, _ := pem.Decode(issued.key); block == nil || block.Type != "PRIVATE KEY" {
		s.t.Errorf("key is %q", issued.key)
	}
	return string(issued.chain)
}

func (s *signed) request(name string) *certificatesv1.PodCertificateRequest {
	s.t.Helper()
	request, err := s.client.CertificatesV1().PodCertificateRequests(podWith().Namespace).Get(s.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return request
}

// answer gives a request the condition that a signer would.
func (s *signed) answer(name, condition string, life time.Duration) {
	request := s.request(name)
	request.Status.Conditions = []metav1.Condition{{Type: condition, Reason: "Because", Message: "of the rules"}}
	if condition == certificatesv1.PodCertificateRequestConditionTypeIssued {
		now := time.Now()
		request.Status.CertificateChain = "of " + name + "\n" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(name)}))
		request.Status.BeginRefreshAt = &metav1.Time{Time: now.Add(life / 2)}
		request.Status.NotAfter = &metav1.Time{Time: now.Add(life)}
	}
	if _, err := s.client.CertificatesV1().PodCertificateRequests(request.Namespace).UpdateStatus(s.t.Context(), request, metav1.UpdateOptions{}); err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

func chain(text string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(text)}))
}

func TestACertificateIsAskedForInThePodsName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigned(t)
		if got, want := s.now(), `signer "example.com/signer" has not issued podcertificaterequest "req-1" yet`; got != want {
			t.Errorf("before the signer answered: %s", got)
		}
		got := s.request("req-1").Spec
		proof, err := x509.ParseCertificateRequest(got.StubPKCS10Request)
		if err != nil || proof.CheckSignature() != nil {
			t.Errorf("proof of possession: %v", err)
		}
		got.StubPKCS10Request = nil
		want := certificatesv1.PodCertificateRequestSpec{
			SignerName: signer, PodName: podWith().Name, PodUID: podWith().UID, ServiceAccountName: "robot", ServiceAccountUID: "robot-uid",
			NodeName: "node", NodeUID: "node-uid", UnverifiedUserAnnotations: map[string]string{"team": "blue"},
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("asked for\n%v\nwant\n%v", got, want)
		}
		if owners := s.request("req-1").OwnerReferences; len(owners) != 1 || owners[0].UID != podWith().UID {
			t.Errorf("owners %v", owners)
		}
	})
}

func TestACertificateIsUsedUntilItsSuccessorIsIssued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigned(t)
		s.now()
		s.answer("req-1", certificatesv1.PodCertificateRequestConditionTypeIssued, 2*time.Hour)
		if s.told == 0 {
			t.Error("nobody was told of the answer")
		}
		if got := s.now(); got != chain("req-1") {
			t.Errorf("once issued: %s", got)
		}
		at, ok := s.nextRenewal(podWith().UID)
		if left := time.Until(at); !ok || left < time.Hour || left > time.Hour+certificateJitter {
			t.Errorf("looked at again in %s", left)
		}
		time.Sleep(time.Until(at))
		if got := s.now(); got != chain("req-1") || s.asked != 2 {
			t.Errorf("when it is time: %d requests, %s", s.asked, got)
		}
		if got := s.now(); got != chain("req-1") || s.asked != 2 {
			t.Errorf("while the signer thinks: %d requests, %s", s.asked, got)
		}
		s.answer("req-2", certificatesv1.PodCertificateRequestConditionTypeIssued, 2*time.Hour)
		if got := s.now(); got != chain("req-2") {
			t.Errorf("once renewed: %s", got)
		}
	})
}

func TestARefusalIsFinalAndSaysWhy(t *testing.T) {
	for _, condition := range []string{certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed} {
		synctest.Test(t, func(t *testing.T) {
			s := newSigned(t)
			s.now()
			s.answer("req-1", condition, 0)
			want := fmt.Sprintf(`podcertificaterequest "req-1": %s: Because: of the rules`, condition)
			if got := s.now(); got != want || s.asked != 1 {
				t.Errorf("%d requests, %s", s.asked, got)
			}
			if _, ok := s.nextRenewal(podWith().UID); ok {
				t.Error("there is more to do")
			}
		})
	}
}

func TestADeletedRequestIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigned(t)
		s.now()
		if err := s.client.CertificatesV1().PodCertificateRequests(podWith().Namespace).Delete(t.Context(), "req-1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := s.now(); !strings.Contains(got, `"req-2"`) {
			t.Errorf("got %s", got)
		}
	})
}

func TestEveryKeyTypeOfTheAPICanBeMade(t *testing.T) {
	for _, keyType := range []string{"RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"} {
		key, proof, err := newKey(keyType)
		if err != nil || len(key) == 0 || len(proof) == 0 {
			t.Errorf("%s: %v", keyType, err)
		}
	}
	if _, _, err := newKey("DSA"); err == nil || err.Error() != `podCertificate.keyType: "DSA" is not known` {
		t.Errorf("unknown type: %v", err)
	}
}
