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

// AskFrom is Ask with a source address of the caller's choice.
func (n *Namespace) AskFrom(source, network, addr, payload string) (answer string, err error) {
	local := &net.UDPAddr{IP: net.ParseIP(source)}
	var conn net.Conn
	err = n.Try(func() (err error) {
		conn, err = (&net.Dialer{LocalAddr: local}).Dial(network, addr)
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return Say(conn, payload)
}

// AskUnconnected sends one datagram from an unconnected socket, and returns
// the answer and where it says it came from.
func (n *Namespace) AskUnconnected(addr, payload string) (answer, from string, err error) {
	var conn net.PacketConn
	err = n.Try(func() (err error) {
		conn, err = net.ListenPacket("udp4", "0.0.0.0:0")
		return err
	})
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return "", "", err
	}
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "", "", err
	}
	if _, err := conn.WriteTo([]byte(payload), net.UDPAddrFromAddrPort(to)); err != nil {
		return "", "", err
	}
	buffer := make([]byte, 64<<10)
	size, sender, err := conn.ReadFrom(buffer)
	if err != nil {
		return "", "", err
	}
	return string(buffer[:size]), sender.String(), nil
}

// Ping sends one ICMP echo request and waits for its reply.
func (n *Namespace) Ping(addr string) error {
	var conn net.Conn
	err := n.Try(func() (err error) {
		conn, err = net.Dial("ip4:icmp", addr)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	// Type 8, code 0, checksum, identifier 0x1234, sequence 1 (RFC 792).
	request := []byte{8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	reply := make([]byte, 1500)
	for {
		size, err := conn.Read(reply)
		if err != nil {
			return fmt.Errorf("no echo reply: %w", err)
		}
		const ipHeader = 20 // raw IPv4 sockets receive it, too (raw(7))
		if icmp := reply[:size]; size >= ipHeader+8 {
			icmp = icmp[ipHeader:]
			if icmp[0] == 0 && icmp[4] == 0x12 && icmp[5] == 0x34 {
				return nil
			}
		}
	}
}
