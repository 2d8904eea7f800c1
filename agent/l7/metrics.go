package l7

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// codeClasses label requests by the first digit of their status.
var codeClasses = [...]string{"1xx", "2xx", "3xx", "4xx", "5xx"}

// metrics are labelled by listener and route name, so their number grows
// with the names in the Config and not with paths or endpoints.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	bound    map[metricKey]*routeMetrics
}

type metricKey struct{ listener, route string }

// routeMetrics are handles bound when a snapshot is compiled.
type routeMetrics struct {
	byClass  [len(codeClasses)]prometheus.Counter
	duration prometheus.Observer
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_l7_requests_total",
			Help: "Requests that matched a route, by class of the status code.",
		}, []string{"listener", "route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "weft_l7_request_duration_seconds",
			Help:    "Time from the request's headers to the end of the response.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 12),
		}, []string{"listener", "route"}),
		bound: map[metricKey]*routeMetrics{},
	}
	if registerer != nil {
		registerer.MustRegister(m.requests, m.duration)
	}
	return m
}

// bind gives each route of s its handles.
func (m *metrics) bind(s *snapshot) {
	for key, r := range s.routes() {
		if m.bound[key] == nil {
			bound := &routeMetrics{duration: m.duration.WithLabelValues(key.listener, key.route)}
			for i, class := range codeClasses {
				bound.byClass[i] = m.requests.WithLabelValues(key.listener, key.route, class)
			}
			m.bound[key] = bound
		}
		r.metrics = m.bound[key]
	}
}

// forgetExcept deletes the series of routes that s does not have.
func (m *metrics) forgetExcept(s *snapshot) {
	kept := map[metricKey]bool{}
	for key := range s.routes() {
		kept[key] = true
	}
	for key := range m.bound {
		if kept[key] {
			continue
		}
		labels := prometheus.Labels{"listener": key.listener, "route": key.route}
		m.requests.DeletePartialMatch(labels)
		m.duration.DeletePartialMatch(labels)
		delete(m.bound, key)
	}
}

func (r *routeMetrics) observe(status int, took time.Duration) {
	if class := status/100 - 1; class >= 0 && class < len(r.byClass) {
		r.byClass[class].Inc()
	}
	r.duration.Observe(took.Seconds())
}

// routes yields every route of s with what labels its metrics.
func (s *snapshot) routes() func(yield func(metricKey, *route) bool) {
	return func(yield func(metricKey, *route) bool) {
		for _, l := range s.listeners {
			for _, r := range l.routes {
				if !yield(metricKey{l.config.Name, r.name}, r) {
					return
				}
			}
		}
	}
}
