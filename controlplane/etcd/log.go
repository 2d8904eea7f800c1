package etcd

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// bridge is a zap core that writes to slog.
type bridge struct {
	zapcore.LevelEnabler
	log *slog.Logger
}

// newLogger returns a logger for etcd that writes entries of at least level to
// log. A closing member reports its own listeners as failed; raise level first.
func newLogger(log *slog.Logger, level zap.AtomicLevel) *zap.Logger {
	return zap.New(bridge{LevelEnabler: level, log: log.With("component", "etcd")})
}

func (b bridge) With(fields []zapcore.Field) zapcore.Core {
	b.log = b.log.With(attributes(fields)...)
	return b
}

func (b bridge) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(entry.Level) {
		return checked.AddCore(entry, b)
	}
	return checked
}

func (b bridge) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	b.log.Log(context.Background(), slogLevel(entry.Level), entry.Message, attributes(fields)...)
	return nil
}

func (b bridge) Sync() error { return nil }

func attributes(fields []zapcore.Field) []any {
	values := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(values)
	}
	var out []any
	for key, value := range values.Fields {
		out = append(out, slog.Any(key, value))
	}
	return out
}

func slogLevel(level zapcore.Level) slog.Level {
	switch {
	case level < zapcore.InfoLevel:
		return slog.LevelDebug
	case level == zapcore.InfoLevel:
		return slog.LevelInfo
	case level == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}
