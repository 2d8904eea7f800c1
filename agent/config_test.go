package agent

import (
	"strings"
	"testing"
)

func TestConfigurationErrorsNameTheirFlags(t *testing.T) {
	tests := map[string]struct {
		change func(*Config)
		want   string // "" is no error
	}{
		"defaults with an address are enough":  {func(*Config) {}, ""},
		"a node needs an address":              {func(c *Config) { c.NodeIPs = nil }, "--node-ip"},
		"addresses are addresses":              {func(c *Config) { c.NodeIPs = []string{"node-1"} }, "--node-ip"},
		"directories are absolute":             {func(c *Config) { c.StateDir = "state" }, "--state-dir"},
		"routing is one of two":                {func(c *Config) { c.Routing = "carrier-pigeon" }, "--routing"},
		"capacity is a quantity":               {func(c *Config) { c.Capacity = map[string]string{"cpu": "half"} }, "--capacity cpu=half"},
		"capacity is not negative":             {func(c *Config) { c.Capacity = map[string]string{"memory": "-1Gi"} }, "--capacity memory=-1Gi"},
		"parts of the machine may be claimed":  {func(c *Config) { c.Capacity = map[string]string{"cpu": "500m", "memory": "1Gi"} }, ""},
		"eviction is by known signals":         {func(c *Config) { c.EvictionHard = map[string]string{"mood.available": "5%"} }, "--eviction-hard mood.available=5%"},
		"disk is a percentage":                 {func(c *Config) { c.EvictionHard = map[string]string{"nodefs.available": "10Gi"} }, "--eviction-hard nodefs.available=10Gi"},
		"memory is a quantity":                 {func(c *Config) { c.EvictionHard = map[string]string{"memory.available": "5%"} }, "--eviction-hard memory.available=5%"},
		"thresholds may be set":                {func(c *Config) { c.EvictionHard = map[string]string{"memory.available": "1Gi", "pid.available": "2%"} }, ""},
		"a limit of processes is not negative": {func(c *Config) { c.PodPIDs = -1 }, "--pod-pids"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := Defaults()
			c.NodeName, c.NodeIPs = "n1", []string{"192.0.2.1"}
			test.change(&c)
			_, err := c.parse()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error %v, want one that names %q", err, test.want)
			}
		})
	}
}
