package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"weft.dev/weft/cni/wire"
)

// recordSuffix marks finished records; temporary files never have it.
const recordSuffix = ".del.json"

// WriteRecord notes a DEL that the agent has not heard of. The same DEL twice
// leaves one record. The file appears whole or not at all.
func WriteRecord(dir string, req wire.Request) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// The network configuration is not needed to take an attachment away.
	req.Config = nil
	data, err := json.Marshal(req)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, recordName(req)))
}

// recordName is unique per attachment: '@' is in no container ID.
func recordName(req wire.Request) string {
	return req.ContainerID + "@" + req.IfName + recordSuffix
}

// Records returns the noted DELs in dir; a missing dir holds none. A record
// that cannot be read is reported and does not hide the others.
func Records(dir string) ([]wire.Request, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var (
		reqs []wire.Request
		errs []error
	)
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		var req wire.Request
		if err == nil {
			err = json.Unmarshal(data, &req)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("DEL record %s: %w", e.Name(), err))
			continue
		}
		reqs = append(reqs, req)
	}
	return reqs, errors.Join(errs...)
}

// RemoveRecord forgets a DEL that has been carried out.
func RemoveRecord(dir string, req wire.Request) error {
	err := os.Remove(filepath.Join(dir, recordName(req)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
