package join

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func TestClientJoinsWithTokenAndRestartsWithoutIt(t *testing.T) {
	c := newCluster(t)
	dir := filepath.Join(t.TempDir(), "state")
	cfg := Config{NodeName: "n1", Dir: dir, Server: c.URL, Token: testToken, CAFile: c.caFile}
	if _, err := Client(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"client.pem", "ca.crt", "kubeconfig"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, error %v; want 0600", name, info, err)
		}
	}
	joined := len(c.asked())

	config, err := Client(t.Context(), Config{NodeName: "n1", Dir: dir, Server: c.URL})
	if err != nil {
		t.Fatalf("second start without token and CA file: %v", err)
	}
	if len(c.asked()) != joined {
		t.Error("the second start asked for a certificate although it had one")
	}
	if _, err := kubernetes.NewForConfigOrDie(config).CertificatesV1().CertificateSigningRequests().List(t.Context(), listOne); err != nil {
		t.Fatal(err)
	}
	if who := c.asked()[joined]; who != "system:node:n1" {
		t.Errorf("the client speaks as %q", who)
	}
	if _, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "kubeconfig")); err != nil {
		t.Errorf("kubeconfig: %v", err)
	}
}

func TestClientFindsThePinnedCA(t *testing.T) {
	c := newCluster(t)
	c.publish = true
	cfg := Config{NodeName: "n1", Dir: t.TempDir(), Server: c.URL, Token: testToken, CAHash: c.caHash()}
	if _, err := Client(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

func TestClientSaysWhatIsWrong(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	other.publish = true
	denying := newCluster(t)
	denying.deny = true
	base := func(c *cluster) Config {
		return Config{NodeName: "n1", Server: c.URL, Token: testToken, CAFile: c.caFile}
	}
	for name, test := range map[string]struct {
		change func(*Config)
		on     *cluster
		want   string
	}{
		"a CA of another cluster":                {func(cfg *Config) { cfg.CAFile = other.caFile }, c, "not signed by the CA of this cluster"},
		"a hash of another cluster":              {func(cfg *Config) { cfg.CAFile, cfg.CAHash = "", c.caHash() }, other, "belongs to another cluster"},
		"a hash, and a server that hides its CA": {func(cfg *Config) { cfg.CAFile, cfg.CAHash = "", c.caHash() }, c, "give this node the CA certificate itself"},
		"no CA at all":                           {func(cfg *Config) { cfg.CAFile = "" }, c, "no CA to trust"},
		"a malformed hash":                       {func(cfg *Config) { cfg.CAFile, cfg.CAHash = "", "sha256:12" }, c, "not of the form sha256"},
		"no token and no certificate":            {func(cfg *Config) { cfg.Token = "" }, c, "no bootstrap token"},
		"a malformed token":                      {func(cfg *Config) { cfg.Token = "secret" }, c, "ID.SECRET"},
		"a server that is not https":             {func(cfg *Config) { cfg.Server = "http://x" }, c, "https://HOST:PORT"},
		"a denied request":                       {func(*Config) {}, denying, "Denied (Policy: not today)"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := base(test.on)
			cfg.Dir = t.TempDir()
			test.change(&cfg)
			_, err := Client(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestUnreachableServerIsRetriedUntilTheContextEnds(t *testing.T) {
	c := newCluster(t)
	cfg := Config{NodeName: "n1", Dir: t.TempDir(), Server: "https://127.0.0.1:1", Token: testToken, CAFile: c.caFile}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := Client(ctx, cfg)
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v", err)
	}
}

func TestRefusedTokenIsFinalOnlyAfterPatience(t *testing.T) {
	err := apierrors.NewUnauthorized("Unauthorized")
	if explain(err, time.Second) != nil {
		t.Error("a server that has just started gets no time to read its tokens")
	}
	if got := explain(err, tokenPatience); got == nil || !strings.Contains(got.Error(), "expired or is unknown") {
		t.Errorf("after %s: %v", tokenPatience, got)
	}
	if explain(errors.New("connection reset"), time.Hour) != nil {
		t.Error("network errors are to be retried for ever")
	}
}

func TestExpiredCertificateIsReplacedByToken(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	cfg := Config{NodeName: "n1", Dir: dir, Server: c.URL, Token: testToken, CAFile: c.caFile}
	c.expires = time.Now().Add(2 * time.Second) // certificates count in whole seconds
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Client(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	cancel()
	time.Sleep(time.Until(c.expires))
	c.expires = time.Now().Add(time.Hour)
	if _, err := Client(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(c.asked(), func(who string) bool { return who != "token" }) {
		t.Errorf("asked by %v", c.asked())
	}
}

func TestCertificateOfAnotherNodeIsNotUsed(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	if _, err := Client(t.Context(), Config{NodeName: "n1", Dir: dir, Server: c.URL, Token: testToken, CAFile: c.caFile}); err != nil {
		t.Fatal(err)
	}
	_, err := Client(t.Context(), Config{NodeName: "n2", Dir: dir, Server: c.URL})
	if err == nil || !strings.Contains(err.Error(), "issued to system:node:n1, not to system:node:n2") {
		t.Errorf("error %v", err)
	}
}

func TestRenewalFallsBetween70And90PercentOfTheLifetime(t *testing.T) {
	start := time.Unix(0, 0)
	end := start.Add(100 * time.Hour)
	for fraction, want := range map[float64]time.Duration{0: 70 * time.Hour, 0.5: 80 * time.Hour, 1: 90 * time.Hour} {
		if got := renewAt(start, end, fraction).Sub(start); got != want {
			t.Errorf("renewAt(%v) = %v, want %v", fraction, got, want)
		}
	}
}

func TestRunRenewsBeforeExpiryAsTheNodeItself(t *testing.T) {
	c := newCluster(t)
	c.expires = time.Now().Add(3 * time.Second)
	cfg := Config{NodeName: "n1", Dir: t.TempDir(), Server: c.URL, Token: testToken, CAFile: c.caFile}
	if _, err := Client(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(10 * time.Second)
	for !slices.Contains(c.asked(), "system:node:n1") {
		select {
		case <-deadline:
			t.Fatalf("no renewal; asked by %v", c.asked())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestServingCertificateFailsHandshakesUntilIssued(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	config, err := Client(t.Context(), Config{NodeName: "n1", Dir: dir, Server: c.URL, Token: testToken, CAFile: c.caFile})
	if err != nil {
		t.Fatal(err)
	}
	serving := ServingConfig{
		NodeName: "n1", Dir: dir, Client: kubernetes.NewForConfigOrDie(config),
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Hostnames: []string{"n1"},
	}
	s, err := ServingCertificate(serving)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err := handshake(t, s); err == nil {
		t.Fatalf("handshake with %v before a certificate was issued", cert)
	}
	if err := s.keeper.obtain(t.Context(), s.keeper.renew); err != nil {
		t.Fatal(err)
	}
	cert, err := handshake(t, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.VerifyHostname("192.0.2.1"); err != nil {
		t.Error(err)
	}

	again, err := ServingCertificate(serving)
	if err != nil || again.keeper.current.Load() == nil {
		t.Errorf("a restart forgot the certificate: %v", err)
	}
	serving.Addresses = append(serving.Addresses, netip.MustParseAddr("192.0.2.2"))
	changed, err := ServingCertificate(serving)
	if err != nil || changed.keeper.current.Load() != nil {
		t.Errorf("a certificate without the new address is still used: %v", err)
	}
}
