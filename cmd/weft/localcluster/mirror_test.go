package localcluster

import (
	"strings"
	"testing"
)

func TestMirrorsAreCheckedBeforeTheyAreWritten(t *testing.T) {
	tests := map[string]struct{ registry, mirror, fails string }{
		"a registry by name":        {"registry.k8s.io", "http://172.30.0.1:5000", ""},
		"a registry with its port":  {"localhost:5000", "https://mirror.example/v2/k8s", ""},
		"a registry with a path":    {"docker.io/library", "http://172.30.0.1:5000", `"docker.io/library" is not a registry`},
		"a registry that goes up":   {"..", "http://172.30.0.1:5000", `".." is not a registry`},
		"no registry":               {"", "http://172.30.0.1:5000", `"" is not a registry`},
		"a mirror without a scheme": {"docker.io", "172.30.0.1:5000", "is not a mirror's URL"},
		"a mirror without a host":   {"docker.io", "http:///v2", "is not a mirror's URL"},
		"a mirror of another kind":  {"docker.io", "ftp://172.30.0.1", "is not a mirror's URL"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := checkMirror(test.registry, test.mirror)
			if test.fails == "" && err != nil || test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)) {
				t.Errorf("got %v, want %q", err, test.fails)
			}
		})
	}
}
