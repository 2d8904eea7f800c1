package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const testNamespace = "weft-system"

// countingIssuer is Weft's CA, and counts what it signs.
type countingIssuer struct {
	*authority
	signed *atomic.Int64
}

func (i countingIssuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	i.signed.Add(1)
	return i.authority.Issue(ctx, csr)
}

// replica runs Certificates as the node name until the test ends.
func replica(t *testing.T, client kubernetes.Interface, name string, issuer certmagic.Issuer) *Certificates {
	t.Helper()
	c, err := New(Config{Node: name, Client: client, Issuer: issuer})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

// handshake returns the certificate that a client of name gets, and what a
// client that trusts the published CA says of it.
func handshake(t *testing.T, c *Certificates, client kubernetes.Interface, name string) (*x509.Certificate, error) {
	t.Helper()
	published, err := client.CoreV1().ConfigMaps(testNamespace).Get(t.Context(), AuthorityName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(published.Data[AuthorityKey]))
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go tls.Server(far, &tls.Config{GetCertificate: c.Certificate}).Handshake()
	conn := tls.Client(near, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	leaf := conn.ConnectionState().PeerCertificates[0]
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name})
	return leaf, err
}

func waitReady(t *testing.T, replicas ...*Certificates) {
	t.Helper()
	for _, c := range replicas {
		select {
		case <-c.ready:
		case <-time.After(30 * time.Second):
			t.Fatal("the CA was not loaded")
		}
	}
}

func TestReplicasThatRaceIssueOneCertificatePerHost(t *testing.T) {
	client := fake.NewClientset()
	ca, err := ensureAuthority(t.Context(), client, testNamespace, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issuer := countingIssuer{ca, &atomic.Int64{}}
	hosts := []string{"a.example.com", "*.wild.example.com"}
	var replicas []*Certificates
	for _, name := range []string{"n1", "n2", "n3"} {
		c := replica(t, client, name, issuer)
		c.Manage(hosts)
		replicas = append(replicas, c)
	}
	waitReady(t, replicas...)
	for _, name := range []string{"a.example.com", "x.wild.example.com"} {
		serials := map[string]bool{}
		for _, c := range replicas {
			leaf, err := handshake(t, c, client, name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			serials[leaf.SerialNumber.String()] = true
		}
		if len(serials) != 1 {
			t.Errorf("%s has %d certificates", name, len(serials))
		}
	}
	if n := issuer.signed.Load(); n != 2 {
		t.Errorf("%d certificates were signed, want 2", n)
	}
	maps, err := client.CoreV1().ConfigMaps(testNamespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(maps.Items) != 1 {
		t.Errorf("there are %d ConfigMaps (%v), want the CA's alone", len(maps.Items), err)
	}
}

func TestUnknownNameGetsTheDefaultCertificate(t *testing.T) {
	client := fake.NewClientset()
	c := replica(t, client, "n1", nil)
	waitReady(t, c)
	leaf, err := handshake(t, c, client, "unknown.example.com")
	if err == nil || leaf.Subject.CommonName != "Weft ingress default certificate" {
		t.Errorf("got %s, %v", leaf.Subject, err)
	}
}

func TestRestartLoadsWhatWasIssued(t *testing.T) {
	client := fake.NewClientset()
	first := replica(t, client, "n1", nil)
	first.Manage([]string{"a.example.com"})
	waitReady(t, first)
	before, _ := handshake(t, first, client, "a.example.com")
	second := replica(t, client, "n1", nil)
	second.Manage([]string{"a.example.com"})
	waitReady(t, second)
	after, err := handshake(t, second, client, "a.example.com")
	if err != nil || !before.Equal(after) {
		t.Errorf("the certificate changed (%v)", err)
	}
}

func TestReplicasThatRaceMakeOneAuthority(t *testing.T) {
	client := fake.NewClientset()
	keys := make([]string, 8)
	var racing sync.WaitGroup
	for i := range keys {
		racing.Go(func() {
			ca, err := ensureAuthority(t.Context(), client, testNamespace, time.Now())
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = ca.IssuerKey()
		})
	}
	racing.Wait()
	if different := slices.Compact(slices.Sorted(slices.Values(keys))); len(different) != 1 {
		t.Errorf("there are %d authorities", len(different))
	}
}

func TestManageIsRepeatedUntilTheAPIServerAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		failures := 3
		client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			if failures > 0 {
				failures--
				return true, nil, apierrors.NewServiceUnavailable("test")
			}
			return false, nil, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		c, err := New(Config{Node: "n1", Client: client})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		c.Manage([]string{"a.example.com"})
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(c.cache.AllMatchingCertificates("a.example.com")) != 1 {
			t.Error("there is no certificate")
		}
		c.Manage(nil)
		synctest.Wait()
		if len(c.cache.AllMatchingCertificates("a.example.com")) != 0 {
			t.Error("a host that is gone still has a certificate")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestCertificatesAreRenewedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		client := fake.NewClientset()
		ca, err := ensureAuthority(ctx, client, testNamespace, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		issuer := countingIssuer{ca, &atomic.Int64{}}
		var running sync.WaitGroup
		var replicas []*Certificates
		for _, node := range []string{"n1", "n2"} {
			c, err := New(Config{Node: node, Client: client, Issuer: issuer})
			if err != nil {
				t.Fatal(err)
			}
			c.Manage([]string{"a.example.com"})
			running.Go(func() { c.Run(ctx) })
			replicas = append(replicas, c)
		}
		time.Sleep(leafLifetime)
		synctest.Wait()
		for _, c := range replicas {
			matching := c.cache.AllMatchingCertificates("a.example.com")
			if len(matching) != 1 || time.Until(matching[0].Leaf.NotAfter) < leafLifetime/3 {
				t.Errorf("%s has %d certificates, not renewed", c.cfg.Node, len(matching))
			}
		}
		if n := issuer.signed.Load(); n != 2 {
			t.Errorf("%d certificates were signed, want the first and one renewal", n)
		}
		cancel()
		running.Wait()
	})
}

func TestStorageIsATreeOfFiles(t *testing.T) {
	ctx := t.Context()
	s := newStorage(fake.NewClientset(), testNamespace, "n1")
	keys := []string{"certificates/ca/a.com/a.com.crt", "certificates/ca/a.com/a.com.key", "certificates/ca/wildcard_.b.com/wildcard_.b.com.crt", "top.json"}
	for _, key := range keys {
		if err := s.Store(ctx, key, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range keys {
		if value, err := s.Load(ctx, key); err != nil || string(value) != key {
			t.Errorf("Load(%s) = %q, %v", key, value, err)
		}
	}
	for _, c := range []struct {
		prefix    string
		recursive bool
		want      []string
	}{
		{"certificates/ca", false, []string{"certificates/ca/a.com", "certificates/ca/wildcard_.b.com"}},
		{"certificates/ca/a.com", false, keys[:2]},
		{"certificates/ca/a.com", true, keys[:2]},
		{"certificates/ca", true, []string{"certificates/ca/a.com", keys[0], keys[1], "certificates/ca/wildcard_.b.com", keys[2]}},
		{"", false, []string{"certificates", "top.json"}},
	} {
		if got, err := s.List(ctx, c.prefix, c.recursive); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("List(%q, %v) = %q, %v, want %q", c.prefix, c.recursive, got, err, c.want)
		}
	}
	if info, err := s.Stat(ctx, "certificates/ca"); err != nil || info.IsTerminal {
		t.Errorf("Stat of a directory: %+v, %v", info, err)
	}
	for _, key := range []string{keys[0], "certificates/ca/wildcard_.b.com", "never/was"} {
		if err := s.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []bool{false, true, false, true} {
		if got := s.Exists(ctx, keys[i]); got != want {
			t.Errorf("after deletion Exists(%s) = %v", keys[i], got)
		}
	}
	if _, err := s.Load(ctx, keys[0]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of a deleted key: %v", err)
	}
}

func TestLockWaitsForItsHolderAndOutlivesADeadOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, client := t.Context(), fake.NewClientset()
		alive, dead, next := newLocker(client, testNamespace, "alive"), newLocker(client, testNamespace, "dead"), newLocker(client, testNamespace, "next")
		if err := alive.Lock(ctx, "job"); err != nil {
			t.Fatal(err)
		}
		waiting, cancel := context.WithTimeout(ctx, 10*lockDuration)
		defer cancel()
		if err := next.Lock(waiting, "job"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a lock that is held and renewed was taken: %v", err)
		}
		if err := alive.Unlock(ctx, "job"); err != nil {
			t.Fatal(err)
		}
		if err := dead.Lock(ctx, "job"); err != nil {
			t.Fatal(err)
		}
		dead.held["job"].stop()
		start := time.Now()
		if err := next.Lock(ctx, "job"); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(start); waited < lockDuration || waited > lockDuration+time.Second {
			t.Errorf("a dead holder's lock was taken after %v", waited)
		}
		if err := next.Unlock(ctx, "job"); err != nil {
			t.Error(err)
		}
	})
}

func TestObjectNamesAreValidAndDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, text := range []string{"", "certificates/ca/a.com", "certificates/cb/a.com", "issue_cert_*.a.com", "..", "A.com", "a..b"} {
		name := objectName("certificate", text)
		if seen[name] || len(name) > 253 || name[len(name)-1] == '-' {
			t.Errorf("%q becomes %q", text, name)
		}
		seen[name] = true
	}
}
