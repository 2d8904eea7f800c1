package testnet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// Timeout is how long a packet may take before it counts as lost.
const Timeout = 2 * time.Second

// Serve answers TCP connections and UDP datagrams to addr with
// "name client-address payload" until the test ends.
func (n *Namespace) Serve(name string, addr netip.AddrPort) {
	n.t.Helper()
	n.Do(func() error {
		tcp, err := net.Listen("tcp", addr.String())
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { tcp.Close() })
		go serveTCP(name, tcp)
		udp, err := net.ListenPacket("udp", addr.String())
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { udp.Close() })
		go serveUDP(name, udp)
		return nil
	})
}

func serveTCP(name string, listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			payload := make([]byte, 64<<10)
			for {
				n, err := conn.Read(payload)
				if err != nil {
					return
				}
				fmt.Fprintf(conn, "%s %s %s", name, conn.RemoteAddr(), payload[:n])
			}
		}()
	}
}

func serveUDP(name string, conn net.PacketConn) {
	payload := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(payload)
		if err != nil {
			return
		}
		answer := fmt.Appendf(nil, "%s %s ", name, from)
		if n < 60000 {
			answer = append(answer, payload[:n]...)
		}
		conn.WriteTo(answer, from) //nolint:errcheck // the client notices
	}
}

// Dial connects from inside the namespace.
func (n *Namespace) Dial(network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := n.Try(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), Timeout)
		defer cancel()
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Ask connects to a Serve at addr, sends payload and returns the answer.
func (n *Namespace) Ask(network, addr, payload string) (string, error) {
	conn, err := n.Dial(network, addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return Say(conn, payload)
}

// Say sends payload on an open connection and returns the first answer.
func Say(conn net.Conn, payload string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, payload); err != nil {
		return "", err
	}
	answer := make([]byte, 64<<10)
	size, err := conn.Read(answer)
	return string(answer[:size]), err
}
