package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/server/logs"
)

// logs sends a container's log, and follows it if asked to.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	container := s.container(w, r)
	if container == nil {
		return
	}
	query := r.URL.Query()
	options, err := logOptions(query, time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	path, running := container.LogPath, s.running(container.ID)
	if isSet(query, "previous") {
		path, running = container.PreviousLogPath, func(context.Context) bool { return false }
	}
	out := &flusher{w: w}
	if path == "" {
		err = fs.ErrNotExist
	} else {
		w.Header().Set("Content-Type", "text/plain")
		err = logs.Copy(r.Context(), out, path, options, running)
	}
	switch {
	case err == nil || r.Context().Err() != nil || out.written:
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, fmt.Sprintf("container %q has no such log (previous: %t)", r.PathValue("container"), isSet(query, "previous")), http.StatusNotFound)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// running tells whether the container still writes its log.
func (s *Server) running(id string) func(context.Context) bool {
	return func(ctx context.Context) bool {
		response, err := s.cfg.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		return err == nil && response.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
	}
}

// logOptions reads the query parameters of a log request
// (PodLogOptions of core/v1) and names the one that is wrong.
func logOptions(query url.Values, now time.Time) (logs.Options, error) {
	options := logs.All()
	options.Follow, options.Timestamps = isSet(query, "follow"), isSet(query, "timestamps")
	seconds := int64(-1)
	for name, field := range map[string]*int64{
		"tailLines": &options.TailLines, "limitBytes": &options.LimitBytes, "sinceSeconds": &seconds,
	} {
		text := query.Get(name)
		if text == "" {
			continue
		}
		value, err := strconv.ParseInt(text, 10, 64)
		if err != nil || value < 0 {
			return options, fmt.Errorf("%s: %q is not a number of 0 or more", name, text)
		}
		*field = value
	}
	if seconds >= 0 {
		options.Since = now.Add(-time.Duration(seconds) * time.Second)
	}
	if text := query.Get("sinceTime"); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return options, fmt.Errorf("sinceTime: %w", err)
		}
		options.Since = at
	}
	switch stream := query.Get("stream"); stream {
	case "", corev1.LogStreamAll:
	case corev1.LogStreamStdout, corev1.LogStreamStderr:
		options.Stream = strings.ToLower(stream)
	default:
		return options, fmt.Errorf("stream: %q is not All, Stdout or Stderr", stream)
	}
	return options, nil
}

// flusher sends every line at once, so that a follower sees it.
type flusher struct {
	w       http.ResponseWriter
	written bool
}

func (f *flusher) Write(p []byte) (int, error) {
	f.written = true
	n, err := f.w.Write(p)
	if flush, ok := f.w.(http.Flusher); ok {
		flush.Flush()
	}
	return n, err
}
