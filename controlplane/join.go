package controlplane

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"

	"weft.dev/weft/controlplane/manifests"
	"weft.dev/weft/controlplane/pki"
)

// Join is the contents of join.json: all that a node needs to join.
type Join struct {
	// Server is the URL of the API server.
	Server string `json:"server"`
	// CAFile is where the cluster CA is on the server's machine.
	CAFile string `json:"caFile"`
	// CA is the cluster CA in PEM, for nodes on other machines.
	CA string `json:"ca"`
	// CAHash is "sha256:" and the hex digest of the CA's DER form.
	CAHash string `json:"caHash"`
	// Token is a bootstrap token, "id.secret".
	Token string `json:"token"`
}

// ensureJoin makes sure that join.json exists and that its token is valid. The
// token is made once; removing the file and the Secret gives a new one at the
// next start.
func ensureJoin(ctx context.Context, cfg Config, client kubernetes.Interface, keys *pki.PKI) error {
	token, err := joinToken(cfg.JoinFile())
	if err != nil {
		return err
	}
	ca := keys.ClusterCA()
	hash, err := pki.Hash(ca)
	if err != nil {
		return fmt.Errorf("hash cluster CA: %w", err)
	}
	data, err := json.MarshalIndent(Join{
		Server: cfg.Server(),
		CAFile: keys.Path(pki.ClusterCA),
		CA:     string(ca),
		CAHash: hash,
		Token:  token,
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode join file: %w", err)
	}
	// The Secret comes first: a join file always holds a token that works.
	if err := ensureTokenSecret(ctx, client, token); err != nil {
		return err
	}
	return pki.WriteFile(cfg.JoinFile(), append(data, '\n'), 0o600)
}

// joinToken returns the token of the join file, or a new one.
func joinToken(path string) (string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return bootstraputil.GenerateBootstrapToken()
	}
	if err != nil {
		return "", fmt.Errorf("read join file: %w", err)
	}
	var join Join
	if err := json.Unmarshal(data, &join); err != nil {
		return "", fmt.Errorf("read join file %s: %w", path, err)
	}
	if !bootstraputil.IsValidBootstrapToken(join.Token) {
		return "", fmt.Errorf("read join file %s: token: must have the form [a-z0-9]{6}.[a-z0-9]{16}", path)
	}
	return join.Token, nil
}

// ensureTokenSecret creates the Secret that makes token valid, in the form of
// https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/.
func ensureTokenSecret(ctx context.Context, client kubernetes.Interface, token string) error {
	id, secret, _ := strings.Cut(token, ".")
	_, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: bootstraputil.BootstrapTokenSecretName(id)},
		Type:       bootstrapapi.SecretTypeBootstrapToken,
		StringData: map[string]string{
			bootstrapapi.BootstrapTokenIDKey:               id,
			bootstrapapi.BootstrapTokenSecretKey:           secret,
			bootstrapapi.BootstrapTokenUsageAuthentication: "true",
			bootstrapapi.BootstrapTokenUsageSigningKey:     "true",
			bootstrapapi.BootstrapTokenExtraGroupsKey:      manifests.BootstrapGroup,
			bootstrapapi.BootstrapTokenDescriptionKey:      "Lets nodes join this Weft cluster.",
		},
	}, metav1.CreateOptions{FieldManager: manifests.FieldManager})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create bootstrap token: %w", err)
	}
	return nil
}

// serverID returns the name of this server, made once and kept in path.
func serverID(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err == nil && len(data) > 0 {
		return strings.TrimSpace(string(data)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read server ID: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("make server ID: %w", err)
	}
	id := host + "_" + strings.ToLower(rand.Text()[:12])
	return id, pki.WriteFile(path, []byte(id+"\n"), 0o600)
}
