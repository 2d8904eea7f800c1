package server

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// resourceMetrics answers with the metrics of
// https://kubernetes.io/docs/reference/instrumentation/node-metrics/, which
// metrics-server reads.
func (s *Server) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&resourceCollector{server: s, ctx: r.Context()})
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

var (
	containerLabels = []string{"container", "pod", "namespace"}
	podLabels       = []string{"pod", "namespace"}

	nodeCPU         = prometheus.NewDesc("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", nil, nil)
	nodeMemory      = prometheus.NewDesc("node_memory_working_set_bytes", "Current working set of the node in bytes", nil, nil)
	podCPU          = prometheus.NewDesc("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", podLabels, nil)
	podMemory       = prometheus.NewDesc("pod_memory_working_set_bytes", "Current working set of the pod in bytes", podLabels, nil)
	containerCPU    = prometheus.NewDesc("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", containerLabels, nil)
	containerMemory = prometheus.NewDesc("container_memory_working_set_bytes", "Current working set of the container in bytes", containerLabels, nil)
	containerStart  = prometheus.NewDesc("container_start_time_seconds", "Start time of the container since unix epoch in seconds", containerLabels, nil)
	scrapeError     = prometheus.NewDesc("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", nil, nil)
)

// resourceCollector measures for one request.
type resourceCollector struct {
	server *Server
	ctx    context.Context
}

func (c *resourceCollector) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{nodeCPU, nodeMemory, podCPU, podMemory, containerCPU, containerMemory, containerStart, scrapeError} {
		out <- desc
	}
}

func (c *resourceCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	counter := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, value, labels...)
	}
	machine, err := machineUsage()
	if err == nil {
		counter(nodeCPU, machine.cpu.Seconds())
		gauge(nodeMemory, float64(machine.workingSet))
	}
	u, usageErr := c.server.usage(c.ctx)
	if err != nil || usageErr != nil {
		c.server.log.Warn("resource metrics are incomplete", "machine", err, "runtime", usageErr)
		gauge(scrapeError, 1)
	} else {
		gauge(scrapeError, 0)
	}
	if usageErr != nil {
		return
	}
	for _, sandbox := range u.sandboxes {
		pod := u.podStats(sandbox)
		ref := []string{pod.PodRef.Name, pod.PodRef.Namespace}
		if pod.CPU != nil && pod.CPU.UsageCoreNanoSeconds != nil {
			counter(podCPU, float64(*pod.CPU.UsageCoreNanoSeconds)/1e9, ref...)
		}
		if pod.Memory != nil && pod.Memory.WorkingSetBytes != nil {
			gauge(podMemory, float64(*pod.Memory.WorkingSetBytes), ref...)
		}
		for _, container := range pod.Containers {
			labels := append([]string{container.Name}, ref...)
			gauge(containerStart, float64(container.StartTime.UnixNano())/1e9, labels...)
			if container.CPU != nil && container.CPU.UsageCoreNanoSeconds != nil {
				counter(containerCPU, float64(*container.CPU.UsageCoreNanoSeconds)/1e9, labels...)
			}
			if container.Memory != nil && container.Memory.WorkingSetBytes != nil {
				gauge(containerMemory, float64(*container.Memory.WorkingSetBytes), labels...)
			}
		}
	}
}
