package main

import (
	"strings"
	"testing"
)

func TestTableSaysWhichGoalsAreMet(t *testing.T) {
	r := results{
		Scenarios: []comparison{{Name: "create", Pods: 100, Sides: []measurement{
			{Side: "weft", Seconds: 10, Writes: 200, CPUSeconds: 5, PeakBytes: 100},
			{Side: "lifted", Seconds: 14, Writes: 250, CPUSeconds: 10, PeakBytes: 80},
			{Side: "default", Seconds: 60, Unfinished: "50 of 100", Writes: 100},
			{Side: "floor", Seconds: 8},
		}}},
		Idle: &idleness{Deployments: 1000, CoreShare: 0.05},
	}
	table := r.table()
	for _, want := range []string{
		"> 60.0 s", "2.00", // the limited side did not finish; writes per pod
		"> 6.00 × ✓", "1.40 × ✗", "1.75 ×", "0.50 ✓", "0.80 ✓", "1.25 ✗",
		"5.0 % of one core", "goal ≤ 2 % ✗",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("%q is not in\n%s", want, table)
		}
	}
}

func TestTableOfOneSideHasNoRatios(t *testing.T) {
	r := results{Scenarios: []comparison{{Name: "create", Pods: 1, Sides: []measurement{{Side: "weft", Seconds: 1, CPUSeconds: 1}}}}}
	if table := r.table(); !strings.Contains(table, "–") || strings.Contains(table, "NaN") || strings.Contains(table, "Inf") {
		t.Error(table)
	}
}

func TestSidesAndScenariosAreChosenByName(t *testing.T) {
	if _, err := chosenSides("weft,fast"); err == nil {
		t.Error("a side that does not exist is accepted")
	}
	if picked, err := chosenSides("default,weft"); err != nil || len(picked) != 2 || picked[0].name != "weft" {
		t.Errorf("got %v, %v", picked, err)
	}
	if _, err := chosen("create,sleep"); err == nil {
		t.Error("a scenario that does not exist is accepted")
	}
}

func TestFiguresAreMedians(t *testing.T) {
	got := median([]measurement{
		{Side: "weft", Seconds: 3, Writes: 10, CPUSeconds: 1, Calls: map[string]int{"slow": 1}},
		{Side: "weft", Seconds: 1, Writes: 30, CPUSeconds: 2, Calls: map[string]int{"fast": 1}},
		{Side: "weft", Seconds: 2, Writes: 20, CPUSeconds: 9, Calls: map[string]int{"median": 1}},
	})
	if got.Seconds != 2 || got.Writes != 20 || got.CPUSeconds != 2 || got.Calls["median"] != 1 {
		t.Errorf("got %+v", got)
	}
}
