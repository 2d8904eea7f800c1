package apiserver

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
)

func TestOnlyAdministratorsActAsOthers(t *testing.T) {
	admin := &user.DefaultInfo{Name: "system:apiserver", Groups: []string{user.SystemPrivilegedGroup}}
	other := &user.DefaultInfo{Name: "somebody", Groups: []string{user.AllAuthenticated}}
	for _, c := range []struct {
		name   string
		sender user.Info
		header http.Header
		want   string // "" is refused
	}{
		{"an administrator as itself", admin, nil, "system:apiserver"},
		{"somebody as itself", other, nil, "somebody"},
		{"an administrator as another", admin, http.Header{"Impersonate-User": {"a"}, "Impersonate-Group": {"g", "h"}}, "a in [g h]"},
		{"somebody as another", other, http.Header{"Impersonate-User": {"a"}, "Impersonate-Group": {"g"}}, ""},
		{"nobody as another", nil, http.Header{"Impersonate-User": {"a"}, "Impersonate-Group": {"g"}}, ""},
		{"a user in unknown groups", admin, http.Header{"Impersonate-User": {"a"}}, ""},
		{"groups without a user", admin, http.Header{"Impersonate-Group": {"g"}}, ""},
		{"a user by its uid", admin, http.Header{"Impersonate-User": {"a"}, "Impersonate-Group": {"g"}, "Impersonate-Uid": {"1"}}, ""},
		{"a user with more to it", admin, http.Header{"Impersonate-User": {"a"}, "Impersonate-Group": {"g"}, "Impersonate-Extra-Scopes": {"s"}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/api", nil)
			r.Header = c.header.Clone()
			if c.sender != nil {
				r = r.WithContext(request.WithUser(r.Context(), c.sender))
			}
			got := ""
			w := httptest.NewRecorder()
			actingAs{http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				u, _ := request.UserFrom(r.Context())
				got = u.GetName()
				if len(r.Header) > 0 {
					t.Errorf("what is left says %v", r.Header)
				}
				if c.header != nil {
					got += " in [g h]"
					if !slices.Equal(u.GetGroups(), []string{"g", "h"}) {
						t.Errorf("groups %v", u.GetGroups())
					}
				}
			})}.ServeHTTP(w, r)
			if got != c.want {
				t.Errorf("the request is made by %q, want %q", got, c.want)
			}
			if refused := w.Code == http.StatusForbidden; refused != (c.want == "") {
				t.Errorf("status %d", w.Code)
			}
		})
	}
}
