package cronjob

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// parse reads the CronJob's schedule in its time zone, or in local if it
// names none.
func parse(spec *batchv1.CronJobSpec, local *time.Location) (schedule cron.Schedule, err error) {
	defer func() { // the library panics on "TZ=UTC" without a schedule
		if p := recover(); p != nil {
			err = fmt.Errorf("cannot be read: %v", p)
		}
	}()
	text := spec.Schedule
	if spec.TimeZone != nil && !namesZone(text) {
		text = "TZ=" + *spec.TimeZone + " " + text
	}
	schedule, err = cron.ParseStandard(text)
	if fields, ok := schedule.(*cron.SpecSchedule); ok {
		zone := fields.Location
		if zone == time.Local {
			zone = local
		}
		return wallClock{*fields, zone}, err
	}
	return schedule, err
}

// wallClock runs whenever a clock on a wall in zone shows what the fields ask
// for.
type wallClock struct {
	fields cron.SpecSchedule
	zone   *time.Location
}

// Next returns the first run after t. The library finds it as long as no clock
// is changed on the way. Its own steps over changes lose runs where a change is
// of half an hour, or find others depending on t.
func (w wallClock) Next(t time.Time) time.Time {
	for {
		first := t.Add(time.Second) // that can be a run
		_, offset := first.In(w.zone).Zone()
		_, change := first.In(w.zone).ZoneBounds()
		fields := w.fields
		fields.Location = time.FixedZone("", offset)
		run := fields.Next(t)
		if run.IsZero() || change.IsZero() || run.Before(change) {
			return run
		}
		t = change.Add(-time.Second)
	}
}

// namesZone reports whether a schedule has a time zone of its own. Validation
// refuses this today; objects from older clusters may have it.
func namesZone(schedule string) bool { return strings.Contains(schedule, "TZ") }

// runs are the times at which a CronJob is to start, all of them after base.
// Questions about them are answered by arithmetic and bisection: a base that
// is decades away, because a clock was wrong, costs no more than yesterday.
type runs struct {
	schedule cron.Schedule
	base     time.Time
}

var errNoRuns = errors.New("no time within the next five years matches it")

// newRuns returns errNoRuns for a schedule such as "0 0 31 2 *".
func newRuns(schedule cron.Schedule, base time.Time) (runs, error) {
	r := runs{schedule: schedule, base: base}
	if _, ok := schedule.(cron.ConstantDelaySchedule); ok {
		r.base = base.Truncate(time.Second) // "@every" counts whole seconds
	}
	if r.next(base).IsZero() {
		return r, errNoRuns
	}
	return r, nil
}

// next returns the first run after t, or zero if the library finds none.
func (r runs) next(t time.Time) time.Time {
	if t.Before(r.base) {
		t = r.base
	}
	if every, ok := r.schedule.(cron.ConstantDelaySchedule); ok {
		return r.base.Add((t.Sub(r.base)/every.Delay + 1) * every.Delay)
	}
	run := r.schedule.Next(t)
	if !run.After(t) {
		return time.Time{}
	}
	return run
}

// isBy reports whether run exists and is not after t.
func isBy(run, t time.Time) bool { return !run.IsZero() && !run.After(t) }

// last returns the latest run not after now, or zero if there is none.
func (r runs) last(now time.Time) time.Time {
	last := r.next(r.base)
	if !isBy(last, now) {
		return time.Time{}
	}
	if every, ok := r.schedule.(cron.ConstantDelaySchedule); ok {
		return r.base.Add(now.Sub(r.base) / every.Delay * every.Delay)
	}
	// last is a run, and there is none between end and now.
	for end := now; ; {
		later := r.next(last)
		if !isBy(later, end) {
			return last
		}
		last = later
		middle := last.Add(end.Sub(last) / 2)
		if later = r.next(middle); isBy(later, end) {
			last = later
		} else {
			end = middle
		}
	}
}

// areMoreThan reports whether more than limit runs are after since and not after now.
func (r runs) areMoreThan(limit int, since, now time.Time) bool {
	if every, ok := r.schedule.(cron.ConstantDelaySchedule); ok {
		first := r.next(since)
		return isBy(first, now) && now.Sub(first)/every.Delay >= time.Duration(limit)
	}
	for t := since; limit >= 0; limit-- {
		if t = r.next(t); !isBy(t, now) {
			return false
		}
	}
	return true
}
