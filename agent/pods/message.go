package pods

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits of termination messages, as in kubelet.
const (
	maxMessage      = 4096 // bytes, from the file
	maxLogMessage   = 2048 // bytes, from the log
	maxLogLines     = 80
	logTailToSearch = 64 << 10 // bytes of the log that are looked at
)

// terminationMessage is what an ended container wrote to its termination
// message path or, by its policy, the end of its log.
func terminationMessage(s *runtimeapi.ContainerStatus) string {
	message := ""
	if path := s.Annotations[annotationMessagePath]; path != "" {
		for _, m := range s.Mounts {
			if m.ContainerPath == absolute(path) {
				data, err := tail(m.HostPath, maxMessage)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Sprintf("Error on reading termination log %s: %v", m.HostPath, err)
				}
				message = string(data)
			}
		}
	}
	policy := corev1.TerminationMessagePolicy(s.Annotations[annotationMessagePolicy])
	if message == "" && policy == corev1.TerminationMessageFallbackToLogsOnError && s.ExitCode != 0 {
		return logMessage(s.LogPath)
	}
	return message
}

// logMessage is the end of a container's log in the CRI format:
// "<time> <stream> <F or P> <text>".
func logMessage(path string) string {
	data, err := tail(path, logTailToSearch)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		return fmt.Sprintf("Error on reading termination message from logs: %v", err)
	}
	lines := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	if len(lines) > maxLogLines {
		lines = lines[len(lines)-maxLogLines:]
	}
	var out strings.Builder
	for _, line := range lines {
		parts := strings.SplitN(string(line), " ", 4)
		if len(parts) < 4 {
			continue
		}
		out.WriteString(parts[3])
		if parts[2] == "F" {
			out.WriteByte('\n')
		}
	}
	text := out.String()
	return text[max(0, len(text)-maxLogMessage):]
}

// tail reads the last bytes of a file, at most limit.
func tail(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if _, err := file.Seek(max(0, info.Size()-limit), io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(file, limit))
}

func absolute(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return "/" + path
}
