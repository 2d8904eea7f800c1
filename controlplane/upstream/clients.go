package upstream

import (
	"fmt"

	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Users that upstream's bootstrap RBAC policy grants the rights of these two
// programs (plugin/pkg/auth/authorizer/rbac/bootstrappolicy).
const (
	ControllerManagerUser = user.KubeControllerManager
	SchedulerUser         = user.KubeScheduler
)

// AsUser returns a copy of loopback that acts as the named user, so that RBAC
// limits and audit names the component instead of the API server itself.
func AsUser(loopback *rest.Config, name string) *rest.Config {
	cfg := rest.CopyConfig(loopback)
	cfg.UserAgent = rest.DefaultKubernetesUserAgent() + "/" + name
	cfg.Impersonate = rest.ImpersonationConfig{
		UserName: name,
		Groups:   []string{user.AllAuthenticated},
	}
	return cfg
}

// AsServiceAccount returns a copy of loopback that acts as the service account
// kube-system/name, which the bootstrap RBAC policy knows; the object itself
// need not exist.
func AsServiceAccount(loopback *rest.Config, name string) *rest.Config {
	const namespace = "kube-system"
	cfg := AsUser(loopback, serviceaccount.MakeUsername(namespace, name))
	cfg.UserAgent = rest.DefaultKubernetesUserAgent() + "/" + name
	cfg.Impersonate.Groups = append(serviceaccount.MakeGroupNames(namespace), user.AllAuthenticated)
	return cfg
}

// config returns the configuration of one controller's clients.
func (e *env) config(account string) *rest.Config {
	return AsServiceAccount(e.Loopback, account)
}

// client returns the client of one controller.
func (e *env) client(account string) (kubernetes.Interface, error) {
	client, err := kubernetes.NewForConfig(e.config(account))
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", account, err)
	}
	return client, nil
}
