package controlplane

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"weft.dev/weft/controlplane/pki"
)

func TestTheJoinFileHoldsOneTokenForGood(t *testing.T) {
	c := valid()
	c.StateDir = t.TempDir()
	keys, err := pki.Open(c.pkiConfig())
	if err != nil {
		t.Fatal(err)
	}
	client := fake.NewClientset()
	var first Join
	for range 2 {
		if err := ensureJoin(t.Context(), c, client, keys); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(c.JoinFile())
		if err != nil {
			t.Fatal(err)
		}
		var join Join
		if err := json.Unmarshal(data, &join); err != nil {
			t.Fatal(err)
		}
		if first.Token == "" {
			first = join
		}
		if join != first {
			t.Errorf("the second start wrote %+v, the first %+v", join, first)
		}
	}
	if info, err := os.Stat(c.JoinFile()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	if first.Server != "https://192.0.2.1:6443" || !strings.HasPrefix(first.CAHash, "sha256:") {
		t.Errorf("join file holds %+v", first)
	}
	id, secret, _ := strings.Cut(first.Token, ".")
	stored, err := client.CoreV1().Secrets("kube-system").Get(t.Context(), "bootstrap-token-"+id, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if stored.StringData["token-secret"] != secret {
		t.Error("the Secret holds another token")
	}
}

func TestADamagedJoinFileIsReported(t *testing.T) {
	tests := []struct{ name, contents, want string }{
		{"not JSON", "token", "read join file"},
		{"a token of another form", `{"token":"secret"}`, "token: must have the form"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "join.json")
			if err := os.WriteFile(path, []byte(tt.contents), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := joinToken(path); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
		})
	}
}

func TestAServerKeepsItsName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server-id")
	first, err := serverID(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := serverID(path)
	if err != nil {
		t.Fatal(err)
	}
	if first == "" || first != second {
		t.Errorf("names %q and %q", first, second)
	}
}

func TestOneProcessUsesAStateDirectory(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockStateDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := valid()
	c.StateDir, c.AdvertiseAddress = dir, netip.MustParseAddr("192.0.2.1")
	if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "does another weft-server use it?") {
		t.Errorf("error %v, want one about the other process", err)
	}
	unlock()
	if unlock, err = lockStateDir(dir); err != nil {
		t.Errorf("after it is gone: %v", err)
	}
	unlock()
}
