// Package wire is the contract between the CNI plugin and the node agent: one
// JSON request and one JSON response over HTTP on the agent's Unix socket.
//
//	runtime ──exec──► weft-cni ──POST /cni/v1──► agent/network
package wire

import "encoding/json"

// Path is where the agent serves requests.
const Path = "/cni/v1"

// Request is one invocation of the plugin (CNI specification 1.1, section 2).
type Request struct {
	Command     string            `json:"command"` // ADD, DEL, CHECK, GC, STATUS
	ContainerID string            `json:"containerID,omitempty"`
	Netns       string            `json:"netns,omitempty"`
	IfName      string            `json:"ifName,omitempty"`
	Args        map[string]string `json:"args,omitempty"`   // CNI_ARGS, e.g. K8S_POD_NAME
	Config      json.RawMessage   `json:"config,omitempty"` // network configuration as given on stdin
}

// Response carries exactly one of Result and Error, or neither for verbs
// that print nothing.
type Response struct {
	Result json.RawMessage `json:"result,omitempty"` // types/100 Result
	Error  *Error          `json:"error,omitempty"`
}

// Error is a CNI error (specification 1.1, "Error"). Codes 1 to 99 are the
// specification's: 11 asks the runtime to try again later.
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// NetConf is what weft-cni needs from its network configuration.
type NetConf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	// Socket is the agent's Unix socket; required.
	Socket string `json:"socket"`
	// DelDir is where DEL leaves a record when the agent is away.
	DelDir string `json:"delDir,omitempty"`
	// RuntimeConfig holds the capabilities the runtime fills in.
	RuntimeConfig struct {
		PortMappings []PortMapping `json:"portMappings,omitempty"`
	} `json:"runtimeConfig,omitempty"`
	// ValidAttachments is set for GC (specification 1.1, "GC").
	ValidAttachments []Attachment `json:"cni.dev/valid-attachments,omitempty"`
}

// PortMapping is one host port of a pod (the portMappings capability).
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // "tcp", "udp", "sctp"
	HostIP        string `json:"hostIP,omitempty"`
}

// Attachment names one interface of one container.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Error makes an *Error usable as a Go error.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}
