package reclaim

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func TestChooseImages(t *testing.T) {
	old := noon.Add(-time.Hour)
	all := []image{
		{id: "recent", bytes: 10, seen: old, used: noon.Add(-time.Minute)},
		{id: "never", bytes: 10, seen: old},
		{id: "long-ago", bytes: 10, seen: old, used: noon.Add(-30 * time.Minute)},
		{id: "in-use", bytes: 10, seen: old, used: noon, inUse: true},
		{id: "pinned", bytes: 10, seen: old, pinned: true},
		{id: "new", bytes: 10, seen: noon.Add(-minImageAge + time.Second)},
	}
	for name, test := range map[string]struct {
		toFree int64
		want   string
	}{
		"nothing while there is room":                {0, ""},
		"the longest unused goes first":              {1, "never"},
		"one is enough if it is large enough":        {10, "never"},
		"then the one unused for longer":             {11, "never long-ago"},
		"what is used, pinned or new always remains": {1000, "never long-ago recent"},
	} {
		t.Run(name, func(t *testing.T) {
			var ids []string
			for _, i := range chooseImages(all, test.toFree, noon) {
				ids = append(ids, i.id)
			}
			if got := strings.Join(ids, " "); got != test.want {
				t.Errorf("removed %q, want %q", got, test.want)
			}
		})
	}
}

// podAsking makes a pod named for its UID.
func podAsking(uid, memory string, priority int32) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: uid, UID: types.UID(uid)}, Spec: corev1.PodSpec{Priority: &priority, Containers: []corev1.Container{{}}}}
	if memory != "" {
		pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return pod
}

func TestChoosePod(t *testing.T) {
	ended := podAsking("ended", "", 0)
	ended.Status.Phase = corev1.PodSucceeded
	deleted := podAsking("deleted", "", 0)
	deleted.DeletionTimestamp = &metav1.Time{Time: noon}
	for name, test := range map[string]struct {
		pods     []*corev1.Pod
		usage    map[types.UID]Usage
		pressure Pressure
		want     string
	}{
		"who uses more than asked for goes before who has a lower priority": {
			[]*corev1.Pod{podAsking("within", "100Mi", 0), podAsking("beyond", "10Mi", 1000)},
			map[types.UID]Usage{"within": {Memory: 90 << 20}, "beyond": {Memory: 20 << 20}}, Pressure{Memory: true}, "beyond"},
		"of two beyond, the lower priority goes": {
			[]*corev1.Pod{podAsking("high", "1Mi", 10), podAsking("low", "1Mi", 5)},
			map[types.UID]Usage{"high": {Memory: 90 << 20}, "low": {Memory: 20 << 20}}, Pressure{Memory: true}, "low"},
		"of two alike, the one further beyond goes": {
			[]*corev1.Pod{podAsking("less", "10Mi", 0), podAsking("more", "20Mi", 0)},
			map[types.UID]Usage{"less": {Memory: 15 << 20}, "more": {Memory: 40 << 20}}, Pressure{Memory: true}, "more"},
		"disk counts when the disk is short": {
			[]*corev1.Pod{podAsking("memory", "", 0), podAsking("disk", "", 0)},
			map[types.UID]Usage{"memory": {Memory: 90 << 20, Disk: 1}, "disk": {Disk: 2}}, Pressure{Disk: true}, "disk"},
		"memory counts when both are short": {
			[]*corev1.Pod{podAsking("memory", "", 0), podAsking("disk", "", 0)},
			map[types.UID]Usage{"memory": {Memory: 90 << 20, Disk: 1}, "disk": {Disk: 2}}, Pressure{Memory: true, Disk: true}, "memory"},
		"the system's own, the ended and the leaving stay": {
			[]*corev1.Pod{podAsking("critical", "", criticalPriority), ended, deleted},
			map[types.UID]Usage{"critical": {Memory: 1}, "ended": {Memory: 1}, "deleted": {Memory: 1}}, Pressure{Memory: true}, ""},
		"who uses nothing would not help": {[]*corev1.Pod{podAsking("idle", "", 0)}, nil, Pressure{Disk: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod, message := choosePod(test.pods, test.usage, test.pressure)
			got := ""
			if pod != nil {
				got = pod.Name
				if !strings.Contains(message, "low on resource") {
					t.Errorf("message %q", message)
				}
			}
			if got != test.want {
				t.Errorf("evicted %q, want %q", got, test.want)
			}
		})
	}
}
