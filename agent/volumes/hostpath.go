package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// checkHostPath checks that what is at the path of a hostPath volume is of the type that the volume asks for, and creates it for
// the two types that say so. Symlinks are followed. The messages are kubelet's (kubernetes/pkg/volume/hostpath). Without a type
// nothing is checked: the runtime creates a missing directory.
func checkHostPath(source *corev1.HostPathVolumeSource) error {
	path := source.Path
	if slices.Contains(strings.Split(filepath.ToSlash(path), "/"), "..") {
		return fmt.Errorf("invalid HostPath `%s`: must not contain '..'", path)
	}
	if source.Type == nil || *source.Type == corev1.HostPathUnset {
		return nil
	}
	switch want := *source.Type; want {
	case corev1.HostPathDirectoryOrCreate:
		if !exists(path) {
			return os.MkdirAll(path, 0o755)
		}
		return expectType(path, corev1.HostPathDirectory, "directory")
	case corev1.HostPathDirectory:
		return expectType(path, want, "directory")
	case corev1.HostPathFileOrCreate:
		if !exists(path) {
			return createFile(path)
		}
		return expectType(path, corev1.HostPathFile, "file")
	case corev1.HostPathFile:
		return expectType(path, want, "file")
	case corev1.HostPathSocket:
		return expectType(path, want, "socket file")
	case corev1.HostPathCharDev:
		return expectType(path, want, "character device")
	case corev1.HostPathBlockDev:
		return expectType(path, want, "block device")
	default:
		return fmt.Errorf("hostPath.type: %q is not a type", want)
	}
}

func expectType(path string, want corev1.HostPathType, name string) error {
	got, err := pathType(path)
	if err != nil {
		return fmt.Errorf("hostPath type check failed, %s is not a %s, unable to determine its type: %w", path, name, err)
	}
	if got != want {
		return fmt.Errorf("hostPath type check failed: %s is not a %s, it's a %s", path, name, got)
	}
	return nil
}

func pathType(path string) (corev1.HostPathType, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("path %q does not exist", path)
	}
	if err != nil {
		return "", err
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		return corev1.HostPathDirectory, nil
	case mode.IsRegular():
		return corev1.HostPathFile, nil
	case mode&fs.ModeSocket != 0:
		return corev1.HostPathSocket, nil
	case mode&fs.ModeCharDevice != 0:
		return corev1.HostPathCharDev, nil
	case mode&fs.ModeDevice != 0:
		return corev1.HostPathBlockDev, nil
	default:
		return "", errors.New("only recognise file, directory, socket, block device and character device")
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func createFile(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return file.Close()
}
