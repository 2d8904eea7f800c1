package servingcsr

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
)

const (
	userPrefix = "system:node:"
	nodesGroup = "system:nodes"
)

// isPending reports whether nobody has decided on the request.
func isPending(request *certificatesv1.CertificateSigningRequest) bool {
	return len(request.Status.Conditions) == 0 && len(request.Status.Certificate) == 0
}

// decide returns nil if the request may be approved, else why not. node is the
// one that the requesting user's name speaks of, nil if there is none. The
// form is that of the signer kubernetes.io/kubelet-serving,
// https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers
func decide(request *certificatesv1.CertificateSigningRequest, node *corev1.Node) error {
	switch {
	case !slices.Contains(request.Spec.Groups, nodesGroup):
		return errors.New("the requester is not in group system:nodes")
	case node == nil || request.Spec.Username != userPrefix+node.Name:
		return fmt.Errorf("there is no node for user %q", request.Spec.Username)
	}
	if err := checkUsages(request.Spec.Usages); err != nil {
		return err
	}
	parsed, err := parse(request.Spec.Request)
	if err != nil {
		return err
	}
	return checkNames(parsed, node)
}

func checkUsages(usages []certificatesv1.KeyUsage) error {
	for _, usage := range usages {
		switch usage {
		case certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageServerAuth:
		default:
			return fmt.Errorf("usage %q is not for serving", usage)
		}
	}
	if !slices.Contains(usages, certificatesv1.UsageServerAuth) {
		return errors.New("usage \"server auth\" is missing")
	}
	return nil
}

func parse(request []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("spec.request is not a PEM certificate request")
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse spec.request: %w", err)
	}
	if err := parsed.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check signature of spec.request: %w", err)
	}
	return parsed, nil
}

func checkNames(request *x509.CertificateRequest, node *corev1.Node) error {
	switch {
	case request.Subject.CommonName != userPrefix+node.Name:
		return fmt.Errorf("common name %q is not that of the node", request.Subject.CommonName)
	case !slices.Equal(request.Subject.Organization, []string{nodesGroup}):
		return fmt.Errorf("organization %v is not [system:nodes]", request.Subject.Organization)
	case len(request.EmailAddresses)+len(request.URIs) > 0:
		return errors.New("email addresses and URIs are not for nodes")
	case len(request.DNSNames)+len(request.IPAddresses) == 0:
		return errors.New("there is no name and no address in it")
	}
	for _, name := range request.DNSNames {
		if name != node.Name && !hasName(node, name) {
			return fmt.Errorf("DNS name %q is not in the node's status", name)
		}
	}
	for _, ip := range request.IPAddresses {
		if !hasAddress(node, ip) {
			return fmt.Errorf("address %v is not in the node's status", ip)
		}
	}
	return nil
}

func hasName(node *corev1.Node, name string) bool {
	return slices.ContainsFunc(node.Status.Addresses, func(a corev1.NodeAddress) bool {
		switch a.Type {
		case corev1.NodeHostName, corev1.NodeInternalDNS, corev1.NodeExternalDNS:
			return a.Address == name
		}
		return false
	})
}

func hasAddress(node *corev1.Node, ip net.IP) bool {
	return slices.ContainsFunc(node.Status.Addresses, func(a corev1.NodeAddress) bool {
		return (a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP) && ip.Equal(net.ParseIP(a.Address))
	})
}
