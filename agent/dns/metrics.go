package dns

import (
	"errors"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what was asked. The number of series does not depend on the
// names asked for.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_dns_requests_total", Help: "DNS questions answered, by source, transport and response code.",
		}, []string{"source", "transport", "rcode"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "weft_dns_request_duration_seconds", Help: "Time to answer a DNS question, by source.",
			Buckets: prometheus.ExponentialBuckets(0.00005, 4, 9),
		}, []string{"source"}),
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.requests), r.Register(m.duration))
}

func (m *metrics) observe(source string, isUDP bool, rcode int, d time.Duration) {
	transport := "tcp"
	if isUDP {
		transport = "udp"
	}
	code, ok := dns.RcodeToString[rcode]
	if !ok {
		code = "other"
	}
	m.requests.WithLabelValues(source, transport, code).Inc()
	m.duration.WithLabelValues(source).Observe(d.Seconds())
}
