package cronjob

import (
	"testing"
	"time"
	_ "time/tzdata" // as in the program: the machine may have none

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	"pgregory.net/rapid"
)

// at reads times of tests, in UTC unless they say otherwise.
func at(t testing.TB, text string) time.Time {
	t.Helper()
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", time.RFC3339} {
		if parsed, err := time.Parse(layout, text); err == nil {
			return parsed
		}
	}
	t.Fatalf("not a time: %q", text)
	return time.Time{}
}

func runsOf(t testing.TB, schedule, zone string, base time.Time) runs {
	t.Helper()
	spec := batchv1.CronJobSpec{Schedule: schedule}
	if zone != "" {
		spec.TimeZone = &zone
	}
	parsed, err := parse(&spec, time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRuns(parsed, base)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRuns(t *testing.T) {
	cases := []struct {
		name                string
		schedule, zone      string
		base, now           string
		last, next          string // of now; "" is none
		moreThan100AreSince bool
	}{
		{"nothing is due before the first run", "0 * * * *", "", "2026-03-01 10:10", "2026-03-01 10:59:59", "", "2026-03-01 11:00", false},
		{"a run is due from its very second", "0 * * * *", "", "2026-03-01 10:10", "2026-03-01 11:00", "2026-03-01 11:00", "2026-03-01 12:00", false},
		{"the base itself is not a run", "0 * * * *", "", "2026-03-01 10:00", "2026-03-01 10:30", "", "2026-03-01 11:00", false},
		{"of several only the latest counts", "0 * * * *", "", "2026-03-01 10:10", "2026-03-01 15:30", "2026-03-01 15:00", "2026-03-01 16:00", false},
		{"100 runs are not too many", "* * * * *", "", "2026-03-01 10:00", "2026-03-01 11:40", "2026-03-01 11:40", "2026-03-01 11:41", false},
		{"101 runs are", "* * * * *", "", "2026-03-01 10:00", "2026-03-01 11:41", "2026-03-01 11:41", "2026-03-01 11:42", true},
		{"an uneven schedule is counted, not estimated", "0,1 0 * * *", "", "2026-03-01 00:00", "2026-03-01 09:00", "2026-03-01 00:01", "2026-03-02 00:00", false},
		{"half a century is answered at once", "*/5 * * * *", "", "1970-01-01 00:00", "2026-03-01 11:42", "2026-03-01 11:40", "2026-03-01 11:45", true},
		{"on weekdays in office hours", "30 6-16/4 * * 1-5", "", "2026-02-27 18:00", "2026-03-02 12:00", "2026-03-02 10:30", "2026-03-02 14:30", false},
		{"leap days", "0 0 29 2 *", "", "2020-03-01 00:00", "2026-03-01 00:00", "2024-02-29 00:00", "2028-02-29 00:00", false},
		{"@every counts from its base", "@every 90m", "", "2026-03-01 10:10:07", "2026-03-01 15:00", "2026-03-01 14:40:07", "2026-03-01 16:10:07", false},
		{"@every is due from its very second", "@every 90m", "", "2026-03-01 10:10:07", "2026-03-01 11:40:07", "2026-03-01 11:40:07", "2026-03-01 13:10:07", false},
		{"@every, nothing due", "@every 90m", "", "2026-03-01 10:10:07", "2026-03-01 11:40:06", "", "2026-03-01 11:40:07", false},
		{"@every, 100 runs", "@every 1m", "", "2026-03-01 10:00", "2026-03-01 11:40:59", "2026-03-01 11:40", "2026-03-01 11:41", false},
		{"@every, 101 runs", "@every 1m", "", "2026-03-01 10:00", "2026-03-01 11:41", "2026-03-01 11:41", "2026-03-01 11:42", true},
		{"@daily in a time zone", "@daily", "Asia/Tokyo", "2026-03-01 00:00", "2026-03-02 00:00", "2026-03-01 15:00", "2026-03-02 15:00", false},
		{"a clock set back before the base waits for it", "0 * * * *", "", "2026-03-01 13:00", "2026-03-01 11:30", "", "2026-03-01 14:00", false},
		{"@every, a clock set back waits too", "@every 1h", "", "2026-03-01 13:00", "2026-03-01 11:30", "", "2026-03-01 14:00", false},
		{"a night shift keeps its hour over the change to summer time", "30 4 * * *", "Europe/Berlin", "2026-03-28 12:00", "2026-03-29 12:00", "2026-03-29 02:30", "2026-03-30 02:30", false},
		{"a time that is left out in spring is left out", "30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", "2026-03-29 12:00", "", "2026-03-30 00:30", false},
		{"a time that comes twice in autumn is two runs", "30 2 * * *", "Europe/Berlin", "2026-10-25 00:30", "2026-10-25 01:30", "2026-10-25 01:30", "2026-10-26 01:30", false},
		{"midnight comes though the clock went back by half an hour", "0 0 * * *", "Australia/Lord_Howe", "2026-04-04 13:00", "2026-04-05 13:29", "", "2026-04-05 13:30", false},
		{"a midnight that does not exist", "0 0 * * *", "America/Santiago", "2026-09-05 12:00", "2026-09-06 12:00", "", "2026-09-07 03:00", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			base, now := at(t, c.base), at(t, c.now)
			r := runsOf(t, c.schedule, c.zone, base)
			show := func(run time.Time) string {
				if run.IsZero() {
					return "none"
				}
				return run.UTC().Format("2006-01-02 15:04:05")
			}
			want := func(text string) string {
				if text == "" {
					return "none"
				}
				return show(at(t, text))
			}
			if got := show(r.last(now)); got != want(c.last) {
				t.Errorf("last is %s, want %s", got, want(c.last))
			}
			if got := show(r.next(now)); got != want(c.next) {
				t.Errorf("next is %s, want %s", got, want(c.next))
			}
			if got := r.areMoreThan(100, base, now); got != c.moreThan100AreSince {
				t.Errorf("more than 100: %t", got)
			}
		})
	}
}

func TestScheduleThatNeverRunsIsAnError(t *testing.T) {
	parsed, err := parse(&batchv1.CronJobSpec{Schedule: "0 0 31 2 *"}, time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newRuns(parsed, at(t, "2026-03-01 00:00")); err == nil {
		t.Error("31 February was accepted")
	}
}

func TestScheduleThatCannotBeReadIsAnError(t *testing.T) {
	for _, text := range []string{"", "* * *", "61 * * * *", "TZ=UTC", "CRON_TZ=", "@sometimes", "@every never"} {
		if _, err := parse(&batchv1.CronJobSpec{Schedule: text}, time.UTC); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestScheduleWithoutTimeZoneIsInThatOfTheServer(t *testing.T) {
	parsed, err := parse(&batchv1.CronJobSpec{Schedule: "0 6 * * *"}, time.FixedZone("here", -3*3600))
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRuns(parsed, at(t, "2026-03-01 00:00"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.next(r.base), at(t, "2026-03-01 09:00"); !got.Equal(want) {
		t.Errorf("next is %v, want %v", got, want)
	}
}

var oddZones = []string{"Etc/UTC", "Europe/Berlin", "America/New_York", "America/Santiago", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Beirut", "America/Havana", "Pacific/Apia", "Asia/Kathmandu"}

// shows reports whether a clock on a wall matches the fields.
func shows(fields cron.SpecSchedule, wall time.Time) bool {
	const star = 1 << 63
	has := func(set uint64, value int) bool { return set&(1<<value) != 0 }
	day, weekday := has(fields.Dom, wall.Day()), has(fields.Dow, int(wall.Weekday()))
	isDay := day || weekday
	if fields.Dom&star != 0 || fields.Dow&star != 0 {
		isDay = day && weekday
	}
	return isDay && has(fields.Month, int(wall.Month())) && has(fields.Hour, wall.Hour()) && has(fields.Minute, wall.Minute())
}

// The arithmetic gives what looking at the clock every minute gives, on days
// when clocks are changed and on others.
func TestArithmeticEqualsLookingAtTheClock(t *testing.T) {
	schedules := []string{
		"* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "0 0 * * *", "59 23 * * *", "30 1,2,3 * * *",
		"15 */5 * * 1-5", "0 0 1 * *", "0 12 13 * 5", "*/20 0-2 * 3,10 0", "@hourly", "@weekly",
	}
	rapid.Check(t, func(t *rapid.T) {
		zone := rapid.SampledFrom(oddZones).Draw(t, "zone")
		parsed, err := parse(&batchv1.CronJobSpec{Schedule: rapid.SampledFrom(schedules).Draw(t, "schedule"), TimeZone: &zone}, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		clock := parsed.(wallClock)
		// Half of the time a change of clocks is near, if there are any.
		base := time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rapid.IntRange(0, 16*365*24*60).Draw(t, "base")) * time.Minute)
		if _, change := base.In(clock.zone).ZoneBounds(); !change.IsZero() && rapid.Bool().Draw(t, "near") {
			base = change.Truncate(time.Minute).Add(-time.Duration(rapid.IntRange(-600, 3*24*60).Draw(t, "before")) * time.Minute)
		}
		now := base.Add(time.Duration(rapid.IntRange(-60, 6*24*60).Draw(t, "later")) * time.Minute)
		var last time.Time
		n := 0
		for minute := base.Add(time.Minute); !minute.After(now); minute = minute.Add(time.Minute) {
			if shows(clock.fields, minute.In(clock.zone)) {
				last, n = minute, n+1
			}
		}
		r, err := newRuns(parsed, base)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.last(now); !got.Equal(last) {
			t.Fatalf("last of (%v, %v] is %v, want %v", base, now, got, last)
		}
		limit := rapid.IntRange(0, 200).Draw(t, "limit")
		if got := r.areMoreThan(limit, base, now); got != (n > limit) {
			t.Fatalf("more than %d of %d: %t", limit, n, got)
		}
	})
}
