package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"weft.dev/weft/agent/desired"
)

// record is what a restart must know of a sandbox.
type record struct {
	desired.Sandbox
	// Leaving is set by DEL: the sandbox is no longer wanted in the kernel,
	// and its addresses come free once it is out of it.
	Leaving bool `json:",omitempty"`
}

// store keeps one file per sandbox, named by its ID.
type store struct{ dir string }

const (
	recordSuffix = ".json"
	tempPrefix   = ".tmp-"
)

func (s store) load() ([]record, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var records []record
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if strings.HasPrefix(e.Name(), tempPrefix) {
			_ = os.Remove(path) // of a process that died; harmless if it stays
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var r record
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, fmt.Errorf("sandbox record %s: %w", path, err)
		}
		records = append(records, r)
	}
	return records, nil
}

// save writes the record; the file changes as a whole or not at all.
func (s store) save(r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, tempPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.path(r.SandboxID))
}

func (s store) remove(sandboxID string) error {
	if err := os.Remove(s.path(sandboxID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s store) path(sandboxID string) string {
	return filepath.Join(s.dir, sandboxID+recordSuffix)
}
