package network

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"weft.dev/weft/cni/wire"
)

// maxRequest bounds a request; a GC with thousands of attachments is smaller.
const maxRequest = 16 << 20

// listen makes the Unix socket, in place of one that a killed process left.
// Only root may connect: the socket decides over the node's network.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (n *Network) newServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wire.Path, n.serveHTTP)
	return &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
}

func serve(server *http.Server, l net.Listener) error {
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveHTTP answers every well-formed request with 200: errors of CNI are
// part of the body.
func (n *Network) serveHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		return // the plugin went away, or is none
	}
	var req wire.Request
	if err := json.Unmarshal(body, &req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := json.Marshal(n.handle(r.Context(), req))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// A plugin that has gone away meanwhile cannot be told.
	_, _ = w.Write(answer)
}

// handle carries out one CNI request.
func (n *Network) handle(ctx context.Context, req wire.Request) wire.Response {
	var resp wire.Response
	result, err := n.carryOut(ctx, req)
	if err != nil {
		resp.Error = toWire(err)
		n.log.Warn("CNI request failed", "command", req.Command, "pod", podName(req), "sandbox", req.ContainerID, "error", err)
		return resp
	}
	if result != nil {
		if resp.Result, err = json.Marshal(result); err != nil {
			resp.Error = toWire(err)
		}
	}
	n.log.Debug("CNI request done", "command", req.Command, "pod", podName(req), "sandbox", req.ContainerID)
	return resp
}

func (n *Network) carryOut(ctx context.Context, req wire.Request) (result any, err error) {
	conf, err := parseConf(req)
	if err != nil {
		return nil, err
	}
	switch req.Command {
	case "ADD":
		return n.add(ctx, req, conf)
	case "DEL":
		return nil, n.del(ctx, req)
	case "CHECK":
		return nil, n.check(req)
	case "GC":
		return nil, n.gc(ctx, conf.ValidAttachments)
	case "STATUS":
		return nil, n.status()
	default:
		return nil, &wire.Error{Code: codeInvalidEnvironment, Msg: "CNI_COMMAND: unknown command " + req.Command}
	}
}

func parseConf(req wire.Request) (wire.NetConf, error) {
	var conf wire.NetConf
	if len(req.Config) == 0 { // a DEL record has none
		return conf, nil
	}
	if err := json.Unmarshal(req.Config, &conf); err != nil {
		return conf, &wire.Error{Code: codeDecode, Msg: "decode network configuration", Details: err.Error()}
	}
	return conf, nil
}

// podName is "namespace/name" from CNI_ARGS, which Kubernetes runtimes set;
// other runtimes' containers go by their ID.
func podName(req wire.Request) string {
	namespace, name := req.Args["K8S_POD_NAMESPACE"], req.Args["K8S_POD_NAME"]
	if name == "" {
		return req.ContainerID
	}
	return namespace + "/" + name
}

// Error codes of the CNI specification 1.1, section "Error"; those from 100 on
// are ours.
const (
	codeUnknownContainer   = 3
	codeInvalidEnvironment = 4
	codeDecode             = 6
	codeInvalidConfig      = 7
	codeTryAgainLater      = 11
	codeNotAvailable       = 50
	codeLimited            = 51
	codeInternal           = 100
	codeCheckFailed        = 101
)

func toWire(err error) *wire.Error {
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	return &wire.Error{Code: codeInternal, Msg: err.Error()}
}

func tryAgain(msg string, cause error) error {
	return &wire.Error{Code: codeTryAgainLater, Msg: msg, Details: cause.Error()}
}
