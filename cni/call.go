package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"weft.dev/weft/cni/wire"
)

// call posts the request to the agent. It speaks HTTP/1.0 by hand (RFC 1945:
// the answer is never chunked and ends with the connection), because net/http
// would double the plugin's size and start-up time.
func call(socket string, req wire.Request, timeout time.Duration) (wire.Response, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return wire.Response{}, err
	}
	conn, err := net.DialTimeout("unix", socket, timeout)
	if err != nil {
		return wire.Response{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return wire.Response{}, err
	}
	var msg bytes.Buffer
	fmt.Fprintf(&msg, "POST %s HTTP/1.0\r\nHost: weft\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", wire.Path, len(body))
	msg.Write(body)
	if _, err := conn.Write(msg.Bytes()); err != nil {
		return wire.Response{}, err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return wire.Response{}, err
	}
	return parseAnswer(answer)
}

// parseAnswer takes an HTTP/1.x response apart. Anything but 200 with a whole
// JSON body counts as no answer: the agent died or is not the agent.
func parseAnswer(answer []byte) (wire.Response, error) {
	head, body, ok := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !ok {
		return wire.Response{}, fmt.Errorf("the agent closed the connection after %d bytes", len(answer))
	}
	status, _, _ := strings.Cut(string(head), "\r\n")
	if fields := strings.Fields(status); len(fields) < 2 || !strings.HasPrefix(fields[0], "HTTP/1.") || fields[1] != "200" {
		return wire.Response{}, fmt.Errorf("the agent answered %q", status)
	}
	var resp wire.Response
	if err := json.Unmarshal(body, &resp); err != nil {
		return wire.Response{}, fmt.Errorf("the agent's answer: %w", err)
	}
	return resp, nil
}
