package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/util/flushwriter"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/pods"
	"weft.dev/weft/agent/server/logs"
)

// containerLogs answers with the log of a container. The query is PodLogOptions.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	options, previous, failed := logOptions(r.URL.Query(), time.Now())
	if failed != nil {
		failed.write(w)
		return
	}
	pod, failed := s.pod(r)
	if failed != nil {
		failed.write(w)
		return
	}
	name := r.PathValue("container")
	if !hasContainer(pod, name) {
		fail(http.StatusNotFound, "container %q not found in pod %q", name, pod.Name).write(w)
		return
	}
	c, found := s.cfg.Pods.Container(pod.UID, name)
	path, failed := chooseLog(pod, name, c, found, previous)
	if failed != nil {
		failed.write(w)
		return
	}
	if path != c.LogPath {
		options.Follow = false // an instance that has ended writes no more
	}
	out := &countingWriter{w: flushwriter.Wrap(w)}
	w.Header().Set("Content-Type", "text/plain")
	err := logs.Copy(r.Context(), out, path, options, func(ctx context.Context) bool { return s.isRunning(ctx, c.ID) })
	switch {
	case err == nil || r.Context().Err() != nil:
	case out.n > 0:
		s.log.Warn("log transfer broke off", "pod", pod.Name, "container", name, "error", err)
	case errors.Is(err, os.ErrNotExist):
		fail(http.StatusNotFound, "container %q in pod %q has no log", name, pod.Name).write(w)
	default:
		fail(http.StatusInternalServerError, "log of container %q in pod %q: %v", name, pod.Name, err).write(w)
	}
}

// chooseLog picks the log file to show: the newest instance's, or with previous
// the one of the last that ended. c is the newest instance if found.
func chooseLog(pod *corev1.Pod, name string, c pods.Container, found, previous bool) (string, *failure) {
	state := containerStatus(pod, name)
	isBetween := state != nil && state.State.Waiting != nil // between two instances, or before the first
	started := found && c.State != "created"
	switch {
	case previous && started && isBetween:
		return c.LogPath, nil
	case previous && c.PreviousLogPath != "":
		return c.PreviousLogPath, nil
	case previous:
		return "", fail(http.StatusBadRequest, "previous terminated container %q in pod %q not found", name, pod.Name)
	case started:
		return c.LogPath, nil
	case c.PreviousLogPath != "":
		return c.PreviousLogPath, nil
	case state == nil:
		return "", fail(http.StatusBadRequest, "container %q in pod %q is not available", name, pod.Name)
	case !isBetween:
		return "", fail(http.StatusBadRequest, "container %q in pod %q is waiting to start - no logs yet", name, pod.Name)
	}
	switch reason := state.State.Waiting.Reason; reason {
	case "ErrImagePull":
		return "", fail(http.StatusBadRequest, "container %q in pod %q is waiting to start: image can't be pulled", name, pod.Name)
	case "ImagePullBackOff":
		return "", fail(http.StatusBadRequest, "container %q in pod %q is waiting to start: trying and failing to pull image", name, pod.Name)
	default:
		return "", fail(http.StatusBadRequest, "container %q in pod %q is waiting to start: %s", name, pod.Name, reason)
	}
}

// isRunning asks the runtime whether a container may still write. A runtime
// that is away is no reason to end.
func (s *Server) isRunning(ctx context.Context, id string) bool {
	response, err := s.cfg.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return status.Code(err) != codes.NotFound
	}
	return response.Status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED
}

// logOptions decodes PodLogOptions; the error names the parameter.
func logOptions(query url.Values, now time.Time) (o logs.Options, previous bool, failed *failure) {
	o = logs.All()
	for name, values := range query {
		value := values[0]
		var err error
		switch name {
		case "follow":
			o.Follow, err = strconv.ParseBool(value)
		case "previous":
			previous, err = strconv.ParseBool(value)
		case "timestamps":
			o.Timestamps, err = strconv.ParseBool(value)
		case "tailLines":
			o.TailLines, err = parseAtLeast(value, 0)
		case "limitBytes":
			o.LimitBytes, err = parseAtLeast(value, 1)
		case "sinceSeconds":
			var seconds int64
			seconds, err = parseAtLeast(value, 1)
			o.Since = now.Add(-time.Duration(seconds) * time.Second)
		case "sinceTime":
			o.Since, err = time.Parse(time.RFC3339, value)
		case "stream":
			o.Stream, err = parseStream(value)
		}
		if err != nil {
			return o, false, fail(http.StatusBadRequest, "invalid value %q of parameter %s: %v", value, name, err)
		}
	}
	switch {
	case query.Has("sinceSeconds") && query.Has("sinceTime"):
		return o, false, fail(http.StatusUnprocessableEntity, "at most one of sinceTime or sinceSeconds may be specified")
	case o.Stream != "" && query.Has("tailLines"):
		return o, false, fail(http.StatusUnprocessableEntity, "tailLines and a specific stream may not be specified together")
	}
	return o, previous, nil
}

func parseAtLeast(value string, least int64) (int64, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err == nil && n < least {
		err = errors.New("must be at least " + strconv.FormatInt(least, 10))
	}
	return n, err
}

// parseStream translates the API's names to CRI's.
func parseStream(value string) (string, error) {
	switch value {
	case corev1.LogStreamAll:
		return "", nil
	case corev1.LogStreamStdout:
		return "stdout", nil
	case corev1.LogStreamStderr:
		return "stderr", nil
	}
	return "", errors.New("must be All, Stdout or Stderr")
}

// countingWriter counts bytes, to know whether an error can still be told.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
