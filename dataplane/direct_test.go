package dataplane

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"weft.dev/weft/dataplane/service"
	"weft.dev/weft/dataplane/testnet"
)

// A socket may use a Service and one of its backends side by side, and a new
// socket may get the port of one that used the other: both flows have the same
// answers on the wire.
func TestOneSocketTalksToAServiceAndToItsBackend(t *testing.T) {
	bothRoutings(t, func(t *testing.T, c *cluster) {
		vip := netip.AddrPortFrom(clusterIP, servicePort)
		for _, target := range []struct {
			name    string
			backend netip.AddrPort
		}{
			{"a pod on the same node", c.a.backend(1)},
			{"a pod on another node", c.b.backend(0)},
		} {
			t.Run("backend is "+target.name, func(t *testing.T) {
				c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, target.backend)
				c.a.apply()
				socket := listenUDP(t, c.a.pods[0])
				for _, to := range []netip.AddrPort{vip, target.backend, vip, target.backend} {
					mustBeAnsweredBy(t, socket, to)
				}
			})
			t.Run("the backend first, which is "+target.name, func(t *testing.T) {
				socket := listenUDP(t, c.a.pods[0])
				for _, to := range []netip.AddrPort{target.backend, vip, target.backend, vip} {
					mustBeAnsweredBy(t, socket, to)
				}
			})
		}
	})
}

// listenUDP makes an unconnected socket.
func listenUDP(t *testing.T, ns *testnet.Namespace) net.PacketConn {
	t.Helper()
	var conn net.PacketConn
	ns.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", "0.0.0.0:0")
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// mustBeAnsweredBy sends a datagram and wants the answer from where it went.
func mustBeAnsweredBy(t *testing.T, socket net.PacketConn, to netip.AddrPort) {
	t.Helper()
	if err := socket.SetDeadline(time.Now().Add(testnet.Timeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
	_, from, err := socket.ReadFrom(make([]byte, 1500))
	if err != nil {
		t.Errorf("to %s: %v", to, err)
	} else if from.String() != to.String() {
		t.Errorf("to %s: answered by %s", to, from)
	}
}
