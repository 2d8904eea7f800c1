package pki

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
)

// newEncryptionConfig returns an EncryptionConfiguration (apiserver.config.k8s.io/v1)
// that stores Secrets with XSalsa20-Poly1305 under a new 32-byte key. Secrets
// written before encryption was on stay readable through the identity provider.
func newEncryptionConfig() ([]byte, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: ["secrets"]
    providers:
      - secretbox:
          keys:
            - name: key1
              secret: %s
      - identity: {}
`, base64.StdEncoding.EncodeToString(key)), nil
}
