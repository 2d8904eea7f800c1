package cni

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"weft.dev/weft/cni/wire"
)

// config is the network configuration on stdin, with the fields that are
// looked at only to refuse them.
type config struct {
	wire.NetConf
	IPAM       json.RawMessage `json:"ipam"`
	PrevResult json.RawMessage `json:"prevResult"`
}

func invalid(format string, args ...any) error {
	return &wire.Error{Code: codeInvalidConfig, Msg: fmt.Sprintf("invalid network configuration: "+format, args...)}
}

// parseConfig checks all that does not depend on the verb. Its errors name
// the field.
func parseConfig(data []byte) (config, error) {
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return config{}, &wire.Error{Code: codeDecode, Msg: "the network configuration on stdin is not valid JSON of the expected form", Details: err.Error()}
	}
	switch {
	case !slices.Contains(supportedVersions, c.CNIVersion):
		return config{}, &wire.Error{
			Code:    codeIncompatibleVersion,
			Msg:     fmt.Sprintf("cniVersion: %q is not supported", c.CNIVersion),
			Details: "supported: " + strings.Join(supportedVersions, ", "),
		}
	case c.Name == "":
		return config{}, invalid("name: must not be empty")
	case c.Socket == "":
		return config{}, invalid("socket: must be the path of the Weft agent's CNI socket")
	case !filepath.IsAbs(c.Socket):
		return config{}, invalid("socket: %q must be an absolute path", c.Socket)
	case c.DelDir != "" && !filepath.IsAbs(c.DelDir):
		return config{}, invalid("delDir: %q must be an absolute path", c.DelDir)
	case present(c.IPAM):
		return config{}, &wire.Error{Code: codeUnsupportedField, Msg: "ipam: not supported, the Weft agent assigns pod addresses from the Node's podCIDRs"}
	}
	return c, nil
}

// checkVerb refuses what a verb cannot have.
func checkVerb(command string, c config) error {
	since11 := command == "GC" || command == "STATUS"
	if since11 && c.CNIVersion != newestVersion {
		return &wire.Error{Code: codeIncompatibleVersion, Msg: fmt.Sprintf("cniVersion: %s has no %s", c.CNIVersion, command)}
	}
	if command == "ADD" && present(c.PrevResult) {
		return &wire.Error{Code: codeUnsupportedField, Msg: "prevResult: weft-cni makes the pod's interface and must be the first plugin of the list"}
	}
	return nil
}

func present(raw json.RawMessage) bool {
	return len(raw) > 0 && string(raw) != "null" && string(raw) != "{}"
}

// parseEnvironment builds the request from the CNI_* variables
// (specification, "Parameters"): which are required depends on the verb.
func parseEnvironment(getenv func(string) string) (wire.Request, error) {
	req := wire.Request{
		Command:     getenv("CNI_COMMAND"),
		ContainerID: getenv("CNI_CONTAINERID"),
		Netns:       getenv("CNI_NETNS"),
		IfName:      getenv("CNI_IFNAME"),
	}
	var required []string
	switch req.Command {
	case "ADD", "CHECK":
		required = []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}
	case "DEL":
		required = []string{"CNI_CONTAINERID", "CNI_IFNAME"}
	case "GC", "STATUS":
	default:
		return req, badEnvironment("CNI_COMMAND: %q is none of ADD, DEL, CHECK, GC, STATUS, VERSION", req.Command)
	}
	for _, name := range required {
		if getenv(name) == "" {
			return req, badEnvironment("%s: must be set for %s", name, req.Command)
		}
	}
	if req.ContainerID != "" && !isContainerID(req.ContainerID) {
		return req, badEnvironment("CNI_CONTAINERID: %q must start with a letter or digit and hold only those, '_', '.' and '-'", req.ContainerID)
	}
	if req.IfName != "" && !isIfName(req.IfName) {
		return req, badEnvironment("CNI_IFNAME: %q is not a device name (1 to 15 bytes, no '/', ':' or space, not \".\" or \"..\")", req.IfName)
	}
	var err error
	req.Args, err = parseArgs(getenv("CNI_ARGS"))
	return req, err
}

func badEnvironment(format string, args ...any) error {
	return &wire.Error{Code: codeInvalidEnvironment, Msg: fmt.Sprintf(format, args...)}
}

// isContainerID follows the specification: "must start with an alphanumeric
// character, optionally followed by any combination of one or more
// alphanumeric characters, underscore, period, or hyphen". Such a string is
// also safe as a file name.
func isContainerID(s string) bool {
	for i := range len(s) {
		c := s[i]
		alphanumeric := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alphanumeric && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return s != ""
}

// isIfName is dev_valid_name of the kernel (net/core/dev.c), which the
// specification quotes.
func isIfName(s string) bool {
	return s != "" && len(s) < 16 && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n\v\f\r")
}

// parseArgs splits CNI_ARGS, "KEY=VALUE;KEY=VALUE". Unknown keys are passed
// on: the runtime says with IgnoreUnknown that they may be.
func parseArgs(s string) (map[string]string, error) {
	args := map[string]string{}
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, badEnvironment("CNI_ARGS: %q is not KEY=VALUE", pair)
		}
		args[key] = value
	}
	return args, nil
}
