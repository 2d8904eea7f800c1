package ingress

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/agent/l7"
)

// Reasons of the events on Ingresses.
const (
	ReasonServiceNotFound    = "ServiceNotFound"
	ReasonPortNotFound       = "ServicePortNotFound"
	ReasonUnsupportedBackend = "UnsupportedBackend"
	ReasonUnsupportedClass   = "UnsupportedIngressClass"
	ReasonConflict           = "Conflict"
	ReasonInvalidCertificate = "InvalidCertificate"
)

// Annotations that ingresses are read for.
const (
	// classAnnotation chose the class before spec.ingressClassName did.
	classAnnotation = "kubernetes.io/ingress.class"
	// sslRedirectAnnotation "false" serves hosts with TLS over plain HTTP too.
	sslRedirectAnnotation = "weft.dev/ssl-redirect"
)

// DefaultCertificate is the name of the certificate for unknown server names.
const DefaultCertificate = "default"

// Names of certificates in an l7.Config begin with where they come from.
const (
	secretPrefix = "secret/"
	issuedPrefix = "issued/"
)

// retries is how many further endpoints a request may try. A rolling update
// takes several endpoints at once.
const retries = 3

// Inputs is everything that decides what the ingress does.
type Inputs struct {
	HTTPAddress, HTTPSAddress string
	// HTTPSPort is where redirects point.
	HTTPSPort uint16
	Ingresses []*networkingv1.Ingress
	Classes   []*networkingv1.IngressClass
	// Service returns nil for what does not exist.
	Service func(types.NamespacedName) *corev1.Service
	// Slices returns the EndpointSlices of a Service.
	Slices func(types.NamespacedName) []*discoveryv1.EndpointSlice
	// Secret says what is known of a TLS Secret.
	Secret func(types.NamespacedName) SecretState
}

// SecretState is what is known of a TLS Secret.
type SecretState int

// The states of TLS Secrets.
const (
	// SecretUnknown has not been read yet: nothing is issued in its place.
	SecretUnknown SecretState = iota
	SecretMissing
	// SecretInvalid exists and holds no certificate with its key.
	SecretInvalid
	SecretValid
)

// Output is what the ingress should do.
type Output struct {
	Config l7.Config
	// Ours are the Ingresses that Weft serves.
	Ours []*networkingv1.Ingress
	// Issue are the hosts that need an issued certificate, sorted.
	Issue []string
	// Secrets are the TLS Secrets that are named, sorted.
	Secrets []types.NamespacedName
	// Services are those whose endpoints are used.
	Services map[types.NamespacedName]bool
	Problems []Problem
}

// Problem is something that the owner of an Ingress should correct.
type Problem struct {
	Ingress *networkingv1.Ingress
	Reason  string
	// Message names the field.
	Message string
}

// Translate computes what the ingress should do. It is pure, and the order
// of objects does not matter: of two that want the same, the older one wins,
// then the first by namespace and name.
func Translate(in Inputs) Output {
	t := &translation{
		in:       in,
		hosts:    map[string]*hostState{},
		clusters: map[string]l7.Cluster{},
		secrets:  map[types.NamespacedName]bool{},
		issue:    map[string]bool{},
	}
	t.out.Services = map[types.NamespacedName]bool{}
	ours := t.chooseIngresses()
	for _, ingress := range ours {
		t.addTLS(ingress)
	}
	for _, ingress := range ours {
		t.addRules(ingress)
	}
	t.out.Ours = ours
	t.finish()
	return t.out
}

// translation is one Translate under way.
type translation struct {
	in       Inputs
	hosts    map[string]*hostState
	clusters map[string]l7.Cluster
	secrets  map[types.NamespacedName]bool
	issue    map[string]bool
	// defaultCertificate is the Secret of an Ingress with TLS for every host.
	defaultCertificate string
	out                Output
}

// hostState is what was claimed for one host so far, by older Ingresses.
type hostState struct {
	routes []l7.Route
	// owners are by path and kind.
	owners   map[pathKey]*networkingv1.Ingress
	fallback *l7.Route
	// certificate and certified are set if the host itself is in a spec.tls.
	certificate string
	certified   *networkingv1.Ingress
	keepsPlain  bool
}

type pathKey struct {
	kind l7.PathKind
	path string
}

func (t *translation) host(pattern string) *hostState {
	pattern = strings.ToLower(pattern)
	h := t.hosts[pattern]
	if h == nil {
		h = &hostState{owners: map[pathKey]*networkingv1.Ingress{}}
		t.hosts[pattern] = h
	}
	return h
}

func (t *translation) problem(ingress *networkingv1.Ingress, reason, format string, args ...any) {
	t.out.Problems = append(t.out.Problems, Problem{ingress, reason, fmt.Sprintf(format, args...)})
}

// addTLS claims hosts for TLS (Ingress v1, spec.tls): hosts that are listed,
// else those of the rules, else every host.
func (t *translation) addTLS(ingress *networkingv1.Ingress) {
	for i, tls := range ingress.Spec.TLS {
		field := fmt.Sprintf("spec.tls[%d]", i)
		secret := types.NamespacedName{Namespace: ingress.Namespace, Name: tls.SecretName}
		state := SecretMissing
		if tls.SecretName != "" {
			t.secrets[secret] = true
			state = t.in.Secret(secret)
		}
		if state == SecretInvalid {
			t.problem(ingress, ReasonInvalidCertificate,
				"%s.secretName: Secret %s has no valid tls.crt with its tls.key; a certificate is issued instead", field, secret)
		}
		hosts := tls.Hosts
		if len(hosts) == 0 {
			hosts = ruleHosts(ingress)
		}
		if len(hosts) == 0 {
			t.addDefaultTLS(ingress, field, secret, state)
		}
		for _, host := range hosts {
			t.addHostTLS(ingress, field, host, secret, state)
		}
	}
}

func (t *translation) addHostTLS(ingress *networkingv1.Ingress, field, host string, secret types.NamespacedName, state SecretState) {
	h := t.host(host)
	if ingress.Annotations[sslRedirectAnnotation] == "false" {
		h.keepsPlain = true
	}
	certificate := issuedPrefix + strings.ToLower(host)
	switch state {
	case SecretValid:
		certificate = secretPrefix + secret.String()
	case SecretUnknown:
		certificate = DefaultCertificate
	}
	if h.certified != nil {
		if h.certificate != certificate {
			t.problem(ingress, ReasonConflict, "%s: host %s already has the certificate of Ingress %s/%s",
				field, host, h.certified.Namespace, h.certified.Name)
		}
		return
	}
	h.certified, h.certificate = ingress, certificate
	if strings.HasPrefix(certificate, issuedPrefix) {
		t.issue[strings.ToLower(host)] = true
	}
}

// addDefaultTLS makes the Secret of an Ingress without hosts answer clients
// that ask for an unknown name.
func (t *translation) addDefaultTLS(ingress *networkingv1.Ingress, field string, secret types.NamespacedName, state SecretState) {
	certificate := secretPrefix + secret.String()
	if state != SecretValid {
		return
	}
	if t.defaultCertificate != "" && t.defaultCertificate != certificate {
		t.problem(ingress, ReasonConflict, "%s: without hosts it is the certificate of every host, and an older Ingress has that", field)
		return
	}
	t.defaultCertificate = certificate
}

func ruleHosts(ingress *networkingv1.Ingress) []string {
	var hosts []string
	for _, rule := range ingress.Spec.Rules {
		if rule.Host != "" && !slices.Contains(hosts, rule.Host) {
			hosts = append(hosts, rule.Host)
		}
	}
	return hosts
}

func (t *translation) addRules(ingress *networkingv1.Ingress) {
	for i, rule := range ingress.Spec.Rules {
		h := t.host(rule.Host)
		if rule.HTTP == nil {
			continue
		}
		for j, path := range rule.HTTP.Paths {
			field := fmt.Sprintf("spec.rules[%d].http.paths[%d]", i, j)
			t.addPath(h, ingress, field, path)
		}
	}
	if ingress.Spec.DefaultBackend != nil {
		t.addDefault(ingress)
	}
}

func (t *translation) addPath(h *hostState, ingress *networkingv1.Ingress, field string, path networkingv1.HTTPIngressPath) {
	match := pathMatch(path)
	key := pathKey{match.PathKind, match.Path}
	if owner := h.owners[key]; owner != nil {
		t.problem(ingress, ReasonConflict, "%s: %s is already served by Ingress %s/%s", field, match, owner.Namespace, owner.Name)
		return
	}
	h.owners[key] = ingress
	h.routes = append(h.routes, t.route(ingress, field+".backend", match, path.Backend))
}

// pathMatch treats ImplementationSpecific as Prefix. Prefix ignores trailing
// slashes (https://kubernetes.io/docs/concepts/services-networking/ingress/#path-types).
func pathMatch(path networkingv1.HTTPIngressPath) l7.Match {
	p := cmp.Or(path.Path, "/")
	if path.PathType != nil && *path.PathType == networkingv1.PathTypeExact {
		return l7.Match{PathKind: l7.Exact, Path: p}
	}
	return l7.Match{PathKind: l7.Prefix, Path: cmp.Or(strings.TrimRight(p, "/"), "/")}
}

// addDefault lets spec.defaultBackend answer what no rule matches: on the
// hosts of this Ingress, and on every other host if no older Ingress does.
func (t *translation) addDefault(ingress *networkingv1.Ingress) {
	r := t.route(ingress, "spec.defaultBackend", l7.Match{PathKind: l7.Prefix, Path: "/"}, *ingress.Spec.DefaultBackend)
	hosts := ruleHosts(ingress)
	for _, host := range append(hosts, "") {
		h := t.host(host)
		if h.fallback == nil {
			h.fallback = &r
		} else if len(hosts) == 0 {
			t.problem(ingress, ReasonConflict, "spec.defaultBackend: Ingress %s is already the default of every host", h.fallback.Name)
		}
	}
}

func (t *translation) route(ingress *networkingv1.Ingress, field string, match l7.Match, backend networkingv1.IngressBackend) l7.Route {
	r := l7.Route{Name: ingress.Namespace + "/" + ingress.Name, Match: match, Retries: retries}
	if cluster := t.cluster(ingress, field, backend); cluster != "" {
		r.Backends = []l7.Backend{{Cluster: cluster, Weight: 1}}
	}
	return r
}

// finish puts what was claimed into a stable order.
func (t *translation) finish() {
	plain := l7.Listener{Name: "http", Address: t.in.HTTPAddress, Protocol: l7.HTTP}
	secure := l7.Listener{
		Name: "https", Address: t.in.HTTPSAddress, Protocol: l7.HTTPS,
		DefaultCertificate: cmp.Or(t.defaultCertificate, DefaultCertificate),
	}
	for _, pattern := range sortedKeys(t.hosts) {
		h := t.hosts[pattern]
		slices.SortFunc(h.routes, func(a, b l7.Route) int { return strings.Compare(a.Match.String(), b.Match.String()) })
		host := l7.Host{Pattern: pattern, Routes: h.routes, Default: h.fallback}
		secure.Hosts = append(secure.Hosts, host)
		if secured := t.securedBy(pattern); secured != nil && !secured.keepsPlain {
			host = t.redirectHost(pattern, secured.certified)
		}
		plain.Hosts = append(plain.Hosts, host)
		if h.certificate != "" {
			secure.Certificates = append(secure.Certificates, l7.ServerName{Host: pattern, Certificate: h.certificate})
		}
	}
	t.out.Config.Listeners = []l7.Listener{plain, secure}
	for _, name := range sortedKeys(t.clusters) {
		t.out.Config.Clusters = append(t.out.Config.Clusters, t.clusters[name])
	}
	t.out.Issue = sortedKeys(t.issue)
	for secret := range t.secrets {
		t.out.Secrets = append(t.out.Secrets, secret)
	}
	slices.SortFunc(t.out.Secrets, func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
}

// securedBy returns the host whose spec.tls covers pattern: itself or a
// wildcard above it.
func (t *translation) securedBy(pattern string) *hostState {
	_, parent, _ := strings.Cut(pattern, ".")
	for _, candidate := range []string{pattern, "*." + parent} {
		if h := t.hosts[candidate]; h != nil && h.certified != nil {
			return h
		}
	}
	return nil
}

// redirectHost sends everything on a host with TLS to HTTPS, with the method
// and body kept (308, RFC 9110 §15.4.9).
func (t *translation) redirectHost(pattern string, ingress *networkingv1.Ingress) l7.Host {
	return l7.Host{Pattern: pattern, Routes: []l7.Route{{
		Name:     ingress.Namespace + "/" + ingress.Name,
		Match:    l7.Match{PathKind: l7.Prefix, Path: "/"},
		Redirect: &l7.Redirect{Scheme: "https", Port: t.in.HTTPSPort, Status: 308},
	}}}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
