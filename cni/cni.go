// Package cni is the weft-cni plugin (CNI specification 1.1): it parses what
// the container runtime gives it, makes one call to the node agent's socket,
// and prints the answer. It keeps no state and touches no device.
//
//	runtime ──env, stdin──► Run ──cni/wire──► agent/network
//	        ◄──── stdout ───┘
//
// The binary is executed several times per pod, so this package imports
// neither net/http nor Kubernetes nor eBPF.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"weft.dev/weft/cni/wire"
)

// Error codes of the specification (section "Error") that the plugin itself
// returns, and codeInternal, the first one free for plugins in practice.
const (
	codeIncompatibleVersion = 1
	codeUnsupportedField    = 2
	codeInvalidEnvironment  = 4
	codeIO                  = 5
	codeDecode              = 6
	codeInvalidConfig       = 7
	codeTryAgainLater       = 11
	codeNotAvailable        = 50
	codeInternal            = 999
)

// requestTimeout bounds one call to the agent. It is longer than the agent's
// own limit for ADD, so that the agent's answer, which says why, wins.
const requestTimeout = 30 * time.Second

// supportedVersions are the CNI versions whose results and errors have the
// form this plugin prints; 1.1 adds verbs and optional fields to 1.0.
var supportedVersions = []string{"1.0.0", "1.1.0"}

const newestVersion = "1.1.0"

// Process is the surroundings of one execution of the plugin.
type Process struct {
	Getenv func(string) string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Run executes the command that the environment names and returns the exit
// code: 0, or 1 after printing an error in the form of the specification.
func Run(p Process) int {
	if p.Getenv("CNI_COMMAND") == "" {
		fmt.Fprintln(p.Stderr, "weft-cni is a CNI plugin: container runtimes run it with CNI_COMMAND set (CNI versions", supportedVersions, ").")
		return 1
	}
	version, err := run(p)
	if err == nil {
		return 0
	}
	printError(p.Stdout, version, err)
	return 1
}

// run returns the CNI version to print an error in, once it is known.
func run(p Process) (version string, err error) {
	if p.Getenv("CNI_COMMAND") == "VERSION" {
		return newestVersion, printJSON(p.Stdout, map[string]any{
			"cniVersion": newestVersion, "supportedVersions": supportedVersions,
		})
	}
	stdin, err := io.ReadAll(p.Stdin)
	if err != nil {
		return newestVersion, &wire.Error{Code: codeIO, Msg: "read network configuration from stdin", Details: err.Error()}
	}
	conf, err := parseConfig(stdin)
	if err != nil {
		return newestVersion, err
	}
	req, err := parseEnvironment(p.Getenv)
	if err != nil {
		return conf.CNIVersion, err
	}
	if err := checkVerb(req.Command, conf); err != nil {
		return conf.CNIVersion, err
	}
	req.Config = stdin
	return conf.CNIVersion, execute(p.Stdout, conf.NetConf, req)
}

// execute hands the request to the agent and prints its answer.
func execute(stdout io.Writer, conf wire.NetConf, req wire.Request) error {
	resp, err := call(conf.Socket, req, requestTimeout)
	if err != nil {
		return agentAway(conf, req, err)
	}
	if resp.Error != nil {
		return resp.Error
	}
	if len(resp.Result) == 0 {
		return nil
	}
	_, err = fmt.Fprintf(stdout, "%s\n", resp.Result)
	return err
}

// agentAway is what each verb does when the agent does not answer. DEL must
// not fail for good (specification, "DEL": plugins should complete without
// error when resources are missing), so it leaves a record that the agent
// works off when it is back.
func agentAway(conf wire.NetConf, req wire.Request, cause error) error {
	switch {
	case req.Command == "DEL" && conf.DelDir != "":
		if err := WriteRecord(conf.DelDir, req); err != nil {
			return &wire.Error{Code: codeIO, Msg: "the node agent is away and the DEL could not be recorded in delDir", Details: err.Error()}
		}
		return nil
	case req.Command == "STATUS":
		return &wire.Error{Code: codeNotAvailable, Msg: "the Weft node agent does not answer on " + conf.Socket, Details: cause.Error()}
	default:
		return &wire.Error{Code: codeTryAgainLater, Msg: "the Weft node agent does not answer on " + conf.Socket + "; try again later", Details: cause.Error()}
	}
}

func printError(w io.Writer, version string, err error) {
	var e *wire.Error
	if !errors.As(err, &e) {
		e = &wire.Error{Code: codeInternal, Msg: err.Error()}
	}
	// Nothing is left to do when stdout is closed: the exit code still says it.
	_ = printJSON(w, struct {
		CNIVersion string `json:"cniVersion"`
		*wire.Error
	}{version, e})
}

func printJSON(w io.Writer, v any) error {
	return json.NewEncoder(w).Encode(v)
}

// Main runs the plugin with the process's own environment and streams.
func Main() int {
	return Run(Process{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
}
