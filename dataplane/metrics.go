package dataplane

import (
	"github.com/prometheus/client_golang/prometheus"
)

var (
	descPackets  = prometheus.NewDesc("weft_packets_total", "Packets forwarded, translated, rejected, and dropped by reason.", []string{"outcome"}, nil)
	descEntries  = prometheus.NewDesc("weft_map_entries", "Entries of a BPF map.", []string{"map"}, nil)
	descCapacity = prometheus.NewDesc("weft_map_capacity", "Most entries of a BPF map.", []string{"map"}, nil)
)

var _ prometheus.Collector = (*Dataplane)(nil)

// Describe implements prometheus.Collector.
func (d *Dataplane) Describe(out chan<- *prometheus.Desc) {
	out <- descPackets
	out <- descEntries
	out <- descCapacity
}

// Collect implements prometheus.Collector: the counters of the programs, and
// how full the maps are that Apply fills.
func (d *Dataplane) Collect(out chan<- prometheus.Metric) {
	d.mu.Lock()
	defer d.mu.Unlock()
	counters, err := d.Counters()
	if err != nil {
		out <- prometheus.NewInvalidMetric(descPackets, err)
	}
	for outcome, n := range counters {
		out <- prometheus.MustNewConstMetric(descPackets, prometheus.CounterValue, float64(n), outcome)
	}
	for name, u := range d.usage() {
		out <- prometheus.MustNewConstMetric(descEntries, prometheus.GaugeValue, float64(u[0]), name)
		out <- prometheus.MustNewConstMetric(descCapacity, prometheus.GaugeValue, float64(u[1]), name)
	}
}

// usage is how many entries each map has that Apply fills, and how many fit.
// The caller holds d.mu.
func (d *Dataplane) usage() map[string][2]int {
	usage := d.services.Usage()
	usage["endpoints"] = [2]int{d.endpoints.Len(), d.endpoints.Cap()}
	usage["networks"] = [2]int{d.networks.Len(), d.networks.Cap()}
	return usage
}
