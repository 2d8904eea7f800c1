package server

import (
	"fmt"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// How long answers of the API server are kept (kubelet's defaults).
const (
	authenticationTTL = 2 * time.Minute
	allowTTL          = 5 * time.Minute
	denyTTL           = 30 * time.Second
	reviewTimeout     = 10 * time.Second
)

// guard lets only those through whom the API server allows.
type guard struct {
	node          string
	clientCA      *dynamiccertificates.DynamicFileCAContent
	authenticator authenticator.Request
	authorizer    authorizer.Authorizer
}

func newGuard(cfg Config) (*guard, error) {
	clientCA, err := dynamiccertificates.NewDynamicCAContentFromFile("client-ca", cfg.ClientCAFile)
	if err != nil {
		return nil, err
	}
	backoff := &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 4}
	authentication := authenticatorfactory.DelegatingAuthenticatorConfig{
		TokenAccessReviewClient:            cfg.Client.AuthenticationV1(),
		TokenAccessReviewTimeout:           reviewTimeout,
		WebhookRetryBackoff:                backoff,
		CacheTTL:                           authenticationTTL,
		ClientCertificateCAContentProvider: clientCA,
	}
	authenticator, _, err := authentication.New()
	if err != nil {
		return nil, fmt.Errorf("authentication: %w", err)
	}
	authorization := authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: cfg.Client.AuthorizationV1(),
		AllowCacheTTL:             allowTTL,
		DenyCacheTTL:              denyTTL,
		WebhookRetryBackoff:       backoff,
	}
	authorizer, err := authorization.New()
	if err != nil {
		return nil, fmt.Errorf("authorization: %w", err)
	}
	return &guard{node: cfg.NodeName, clientCA: clientCA, authenticator: authenticator, authorizer: authorizer}, nil
}

// wrap answers 401 to strangers and 403 to those who may not use this
// subresource of nodes; nodes/proxy allows everything, as in kubelet.
func (g *guard) wrap(subresource string, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, known, err := g.authenticator.AuthenticateRequest(r)
		if err != nil || !known {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		allowed, reason := g.allows(r, who.User, subresource)
		if !allowed && subresource != "proxy" {
			allowed, reason = g.allows(r, who.User, "proxy")
		}
		if !allowed {
			http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource=%s): %s",
				who.User.GetName(), verb(r.Method), subresource, reason), http.StatusForbidden)
			return
		}
		next(w, r)
	})
}

func (g *guard) allows(r *http.Request, who user.Info, subresource string) (bool, string) {
	decision, reason, err := g.authorizer.Authorize(r.Context(), authorizer.AttributesRecord{
		User: who, Verb: verb(r.Method), Resource: "nodes", APIVersion: "v1",
		Name: g.node, Subresource: subresource, ResourceRequest: true, Path: r.URL.Path,
	})
	if err != nil {
		return false, err.Error()
	}
	return decision == authorizer.DecisionAllow, reason
}

// verb is the API verb of a method, as kubelet maps it
// (pkg/kubelet/server/auth.go).
func verb(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	default:
		return "get"
	}
}
