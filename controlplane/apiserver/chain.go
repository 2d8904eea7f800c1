package apiserver

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	endpointfilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/filters"
	flowcontrol "k8s.io/apiserver/pkg/util/flowcontrol/request"
)

// localChain returns the filters for requests of clients in this process, in the
// order of server.DefaultBuildHandlerChain. Those that decide something are all
// there: authentication, audit, priority and fairness, authorization. Those
// are left out that are about a network between client and server, and those
// that only watch how long others take.
func localChain(handler http.Handler, c *server.Config) http.Handler {
	handler = endpointfilters.WithAuthorization(handler, c.Authorization.Authorizer, c.Serializer)
	if c.FlowControl != nil {
		work := flowcontrol.NewWorkEstimator(c.StorageObjectCountTracker.Get, c.FlowControl.GetInterestedWatchCount,
			flowcontrol.DefaultWorkEstimatorConfig(), c.FlowControl.GetMaxSeats)
		handler = filters.WithPriorityAndFairness(handler, c.LongRunningFunc, c.FlowControl, work, c.RequestTimeout/4)
	} else {
		handler = filters.WithMaxInFlightLimit(handler, c.MaxRequestsInFlight, c.MaxMutatingRequestsInFlight, c.LongRunningFunc)
	}
	handler = actingAs{handler}
	handler = endpointfilters.WithAudit(handler, c.AuditBackend, c.AuditPolicyRuleEvaluator, c.LongRunningFunc)
	refuse := endpointfilters.WithFailedAuthenticationAudit(endpointfilters.Unauthorized(c.Serializer), c.AuditBackend, c.AuditPolicyRuleEvaluator)
	handler = endpointfilters.WithAuthentication(handler, c.Authentication.Authenticator, refuse, c.Authentication.APIAudiences, c.Authentication.RequestHeaderConfig)
	handler = endpointfilters.WithWarningRecorder(handler)
	handler = filters.WithWaitGroup(handler, c.LongRunningFunc, c.NonLongRunningRequestWaitGroup)
	handler = endpointfilters.WithLatencyTrackers(handler)
	handler = endpointfilters.WithRequestInfo(handler, c.RequestInfoResolver)
	handler = endpointfilters.WithRequestReceivedTimestamp(handler)
	return endpointfilters.WithAuditInit(handler)
}

// actingAs lets administrators be whom they say, in the groups that they name.
type actingAs struct{ next http.Handler }

func (a actingAs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	who, err := actor(r)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	case who != nil:
		audit.LogImpersonatedUser(r.Context(), who, "")
		r = r.WithContext(request.WithUser(r.Context(), who))
		// An API server that this is proxied to must not be asked for it again.
		r.Header.Del(authenticationv1.ImpersonateUserHeader)
		r.Header.Del(authenticationv1.ImpersonateGroupHeader)
	}
	a.next.ServeHTTP(w, r)
}

// actor returns the user that the sender of r wants to be; nil for itself. It
// knows what package upstream's configurations ask for and refuses the rest.
func actor(r *http.Request) (user.Info, error) {
	who := &user.DefaultInfo{}
	for name, values := range r.Header {
		switch {
		case name == authenticationv1.ImpersonateUserHeader:
			who.Name = values[0]
		case name == authenticationv1.ImpersonateGroupHeader:
			who.Groups = values
		case strings.HasPrefix(name, "Impersonate-"):
			return nil, fmt.Errorf("in this process, nobody acts as others by %s", name)
		}
	}
	sender, ok := request.UserFrom(r.Context())
	switch {
	case who.Name == "" && who.Groups == nil:
		return nil, nil
	case who.Name == "" || who.Groups == nil:
		return nil, errors.New("who acts as another in this process must name a user and its groups")
	case !ok || !slices.Contains(sender.GetGroups(), user.SystemPrivilegedGroup):
		return nil, errors.New("only administrators may act as others in this process")
	}
	return who, nil
}
