package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// nodeAddress is the address that the fake node reports.
const nodeAddress = "192.0.2.11"

// nodeJoinsByToken does what an agent does: with the token of the join file it
// gets a node certificate, and with that a Node, which is its own and no
// other. It returns the node's name; the node is ready for pods.
func (c *cluster) nodeJoinsByToken() string {
	const name = "node-1"
	client := c.nodeClient(name)
	ctx := context.Background()
	_, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		c.Fatalf("a joined node may not create its Node: %v", err)
	}
	_, err = client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-2"}}, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) {
		c.Errorf("a node that creates another's Node gets %v", err)
	}
	if _, err := client.CoreV1().Secrets("default").Get(ctx, "kept", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		c.Errorf("a node that reads a Secret no pod of its uses gets %v", err)
	}
	if _, err := client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{}); err != nil {
		c.Errorf("a node may not list EndpointSlices: %v", err)
	}
	// Again when the node lifecycle controller has changed the taints between.
	c.eventually("the node has updated its status", func(ctx context.Context) error {
		return reportReady(ctx, client, name)
	})
	c.eventually("the node has its part of the pod addresses", func(ctx context.Context) error {
		got, err := c.admin.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err == nil && !slices.Equal(got.Spec.PodCIDRs, []string{"10.244.0.0/24"}) {
			err = fmt.Errorf("it has %v", got.Spec.PodCIDRs)
		}
		return err
	})
	c.certificate(client, name, certificatesv1.KubeletServingSignerName, certificatesv1.UsageServerAuth)
	c.eventually("the node is free of the not-ready taint", func(ctx context.Context) error {
		got, err := c.admin.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err == nil && len(got.Spec.Taints) > 0 {
			err = errors.New("it has " + got.Spec.Taints[0].Key)
		}
		return err
	})
	return name
}

func reportReady(ctx context.Context, client kubernetes.Interface, name string) error {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddress}}
	node.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now(),
	}}
	node.Status.Allocatable = corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("4"),
		corev1.ResourceMemory: resource.MustParse("4Gi"),
		corev1.ResourcePods:   resource.MustParse("10"),
	}
	node.Status.Capacity = node.Status.Allocatable
	_, err = client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}

// nodeClient returns the client of a node that joined by token.
func (c *cluster) nodeClient(name string) kubernetes.Interface {
	data, err := os.ReadFile(c.cfg.JoinFile())
	if err != nil {
		c.Fatal(err)
	}
	var join Join
	if err := json.Unmarshal(data, &join); err != nil {
		c.Fatal(err)
	}
	ca := rest.TLSClientConfig{CAFile: join.CAFile}
	newcomer, err := kubernetes.NewForConfig(&rest.Config{Host: join.Server, BearerToken: join.Token, TLSClientConfig: ca})
	if err != nil {
		c.Fatal(err)
	}
	ca.CertData, ca.KeyData = c.certificate(newcomer, name, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.UsageClientAuth)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: join.Server, TLSClientConfig: ca})
	if err != nil {
		c.Fatal(err)
	}
	return client
}

// certificate asks for a node's certificate through client and waits for it.
func (c *cluster) certificate(client kubernetes.Interface, node, signer string, usage certificatesv1.KeyUsage) (certPEM, keyPEM []byte) {
	keyPEM, request := c.certificateRequest(node, usage)
	requests := client.CertificatesV1().CertificateSigningRequests()
	csr, err := requests.Create(context.Background(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "join-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    request,
			SignerName: signer,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		c.Fatalf("it may not ask for a certificate of %s: %v", signer, err)
	}
	c.eventually("the certificate of "+signer+" is approved and signed", func(ctx context.Context) error {
		got, err := requests.Get(ctx, csr.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		certPEM = got.Status.Certificate
		if len(certPEM) == 0 {
			return fmt.Errorf("there is none, conditions %v", got.Status.Conditions)
		}
		return nil
	})
	return certPEM, keyPEM
}

func (c *cluster) certificateRequest(node string, usage certificatesv1.KeyUsage) (keyPEM, request []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		c.Fatal(err)
	}
	template := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
	}
	if usage == certificatesv1.UsageServerAuth {
		template.IPAddresses = []net.IP{net.ParseIP(nodeAddress)}
	}
	requestDER, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		c.Fatal(err)
	}
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	return keyPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: requestDER})
}
