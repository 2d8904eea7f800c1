// Package bpfobj is the output of bpf2go: the compiled programs of bpf/ and
// the Go twins of their types. Nothing but this file is written by hand;
// `go generate` makes the rest, with the compiler pinned to clang-19.
//
// Maps (maps.c) has every map and, as MapsServiceKey and the like, the types
// of their keys and values. The other objects have programs, and find their
// maps by name.
package bpfobj

import (
	"crypto/sha256"
	"encoding/hex"
)

//go:generate go tool bpf2go -cc clang-19 -target bpfel Maps ../../bpf/maps.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3
//go:generate go tool bpf2go -cc clang-19 -target bpfel -no-global-types Pod ../../bpf/pod.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3
//go:generate go tool bpf2go -cc clang-19 -target bpfel -no-global-types Host ../../bpf/host.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3
//go:generate go tool bpf2go -cc clang-19 -target bpfel -no-global-types Overlay ../../bpf/overlay.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3
//go:generate go tool bpf2go -cc clang-19 -target bpfel -no-global-types Socket ../../bpf/socket.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3

// Digest identifies the compiled programs: 16 hexadecimal digits.
func Digest() string {
	h := sha256.New()
	for _, object := range [][]byte{_PodBytes, _HostBytes, _OverlayBytes, _SocketBytes} {
		h.Write(object)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
