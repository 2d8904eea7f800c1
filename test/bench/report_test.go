package main

import (
	"bytes"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		name   string
		values []float64
		want   Spread
	}{
		{"nothing was measured", nil, Spread{}},
		{"the one in the middle, in any order", []float64{9, 1, 5}, Spread{Median: 5, Min: 1, Max: 9}},
		{"the mean of both in the middle", []float64{4, 1, 2, 9}, Spread{Median: 3, Min: 1, Max: 9}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := spread(tt.values); got != tt.want {
				t.Errorf("spread(%v) = %+v, want %+v", tt.values, got, tt.want)
			}
		})
	}
}

func TestTableComparesWithClusterIPOfWeft(t *testing.T) {
	at := func(network, target string, rates ...float64) Series {
		s := Series{Test: tcpRR, path: path{Network: network, Target: target, Distance: distances[0]}}
		for _, rate := range rates {
			s.Rounds = append(s.Rounds, Load{PerSecond: rate, P50: 1e6 / rate, P99: 2e6 / rate, CPU: 3e5 / rate})
		}
		return s
	}
	other := at("iptables", clusterIP, 1)
	other.Distance = distances[1]
	lossy := at("iptables", clusterIP, 30000, 20000, 10000)
	lossy.Rounds[1].Lost, lossy.Rounds[2].Lost = 2, 1
	var out bytes.Buffer
	printNetwork(&out, tcpRR, distances[0], []Series{
		at("weft", direct, 40000, 40000, 50000),
		at("weft", clusterIP, 40000, 10000, 50000),
		lossy,
		other,
	})
	want := `
TCP request/response, backend on the same node
                                        per second                    p50 µs                   p99 µs  CPU µs  Weft's ClusterIP: rate     p50     CPU
                          Weft, direct       40000  (40000 to 50000)    25.0   (20.0 to 25.0)    50.0     7.5                  1.00 ×  1.00 ×  1.00 ×
                       Weft, ClusterIP       40000  (10000 to 50000)    25.0  (20.0 to 100.0)    50.0     7.5                  1.00 ×  1.00 ×  1.00 ×
  veth, kube-proxy iptables, ClusterIP       20000  (10000 to 30000)    50.0  (33.3 to 100.0)   100.0    15.0                  2.00 ×  2.00 ×  2.00 ×
veth, kube-proxy iptables, ClusterIP: 3 datagrams had no answer within 1s
`
	if out.String() != want {
		t.Errorf("got%s\nwant%s", out.String(), want)
	}
}
