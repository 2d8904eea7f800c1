package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// Cache times and retries are kubelet's defaults.
const (
	tokenCache = 2 * time.Minute
	allowCache = 5 * time.Minute
	denyCache  = 30 * time.Second
	askTimeout = 10 * time.Second
)

// auth lets through who is known and allowed.
type auth struct {
	nodeName      string
	clientCA      *dynamiccertificates.DynamicFileCAContent
	authenticator authenticator.Request
	authorizer    authorizer.UnconditionalAuthorizer
	log           *slog.Logger
}

func newAuth(cfg Config) (*auth, error) {
	clientCA, err := dynamiccertificates.NewDynamicCAContentFromFile("client-ca", cfg.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("client CA of the node API: %w", err)
	}
	retry := &wait.Backoff{Duration: 500 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 5}
	who, _, err := authenticatorfactory.DelegatingAuthenticatorConfig{
		TokenAccessReviewClient:            cfg.Client.AuthenticationV1(),
		TokenAccessReviewTimeout:           askTimeout,
		WebhookRetryBackoff:                retry,
		CacheTTL:                           tokenCache,
		ClientCertificateCAContentProvider: clientCA,
	}.New()
	if err != nil {
		return nil, fmt.Errorf("authentication of the node API: %w", err)
	}
	may, err := authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: cfg.Client.AuthorizationV1(),
		AllowCacheTTL:             allowCache,
		DenyCacheTTL:              denyCache,
		WebhookRetryBackoff:       retry,
	}.New()
	if err != nil {
		return nil, fmt.Errorf("authorization of the node API: %w", err)
	}
	return &auth{nodeName: cfg.NodeName, clientCA: clientCA, authenticator: who, authorizer: may, log: cfg.Log}, nil
}

// run reads the client CA again when its file changes, until ctx is done.
func (a *auth) run(ctx context.Context) { a.clientCA.Run(ctx, 1) }

// protect calls next for those who may.
func (a *auth) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, ok, err := a.authenticator.AuthenticateRequest(r)
		if err != nil || !ok {
			a.log.Debug("node API: caller unknown", "path", r.URL.Path, "from", r.RemoteAddr, "error", err)
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		var lastErr error
		verb, subresources := permissions(r.Method, r.URL.Path)
		for _, subresource := range subresources {
			decision, _, err := a.authorizer.Authorize(r.Context(), attributes(who.User, a.nodeName, verb, subresource, r.URL.Path))
			if decision == authorizer.DecisionAllow {
				next.ServeHTTP(w, r)
				return
			}
			if err != nil {
				lastErr = err
			}
		}
		if lastErr != nil {
			a.log.Warn("node API: the API server does not say what a caller may do", "user", who.User.GetName(), "error", lastErr)
			http.Error(w, "authorization failed: the API server does not answer", http.StatusInternalServerError)
			return
		}
		http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%s)",
			who.User.GetName(), verb, strings.Join(subresources, ",")), http.StatusForbidden)
	})
}

func attributes(who user.Info, node, verb, subresource, path string) authorizer.Attributes {
	return authorizer.AttributesRecord{
		User: who, Verb: verb, APIVersion: "v1", Resource: "nodes", Subresource: subresource,
		Name: node, ResourceRequest: true, Path: path,
	}
}

// permissions are the verb on nodes/SUBRESOURCE, and the subresources any one
// of which suffices, see
// https://kubernetes.io/docs/reference/access-authn-authz/kubelet-authn-authz/.
// Unlike kubelet, what runs or enters a container always needs "create": a
// WebSocket begins as a GET, and the right to read must not grant it.
func permissions(method, path string) (verb string, subresources []string) {
	verb = map[string]string{
		http.MethodPost: "create", http.MethodGet: "get", http.MethodPut: "update",
		http.MethodPatch: "patch", http.MethodDelete: "delete",
	}[method]
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "exec", "attach", "portForward", "run":
		return "create", []string{"proxy"}
	case "pods", "healthz":
		return verb, []string{first, "proxy"}
	case "stats", "metrics":
		return verb, []string{first}
	}
	return verb, []string{"proxy"}
}
