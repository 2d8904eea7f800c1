package statefulset

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// refs reads owners: "set" and "pod" are web and web-0, "other" is somebody
// else's ConfigMap. "former" before a name is one with another UID, "plain" one that is not
// the controller.
func refs(description string) []metav1.OwnerReference {
	var list []metav1.OwnerReference
	for word := range strings.FieldsSeq(description) {
		ref := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "other", UID: "other", Controller: new(true)}
		switch {
		case strings.HasSuffix(word, "set"):
			ref.APIVersion, ref.Kind, ref.Name, ref.UID = "apps/v1", "StatefulSet", "web", "web"
		case strings.HasSuffix(word, "pod"):
			ref.Kind, ref.Name, ref.UID = "Pod", "web-0", "uid of web-0"
		}
		if strings.HasPrefix(word, "former-") {
			ref.UID = "former"
		}
		if strings.HasPrefix(word, "plain-") {
			ref.Controller = nil
		}
		list = append(list, ref)
	}
	return list
}

func describe(list []metav1.OwnerReference) string {
	var words []string
	for _, ref := range list {
		word := map[string]string{"StatefulSet": "set", "Pod": "pod"}[ref.Kind]
		if word == "" {
			word = "other"
		}
		switch {
		case ref.UID == "former":
			word = "former-" + word
		case ref.Controller == nil:
			word = "plain-" + word
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func TestOwnersOfAClaim(t *testing.T) {
	const keep, drop = "Retain", "Delete"
	stays, condemned := int32(1), int32(0) // replicas; the pod is web-0
	cases := []struct {
		name                    string
		whenDeleted, whenScaled string
		replicas                int32
		have, want              string
		conflict                bool
	}{
		{"a retained claim has no owner", keep, keep, stays, "", "", false},
		{"and loses those that it had", keep, keep, stays, "set pod", "", false},
		{"but not others'", keep, keep, stays, "set plain-other", "plain-other", false},
		{"not even a controller", keep, keep, stays, "other", "other", false},
		{"it goes with the set", drop, keep, stays, "", "set", false},
		{"it goes with the set, not with a condemned pod", drop, keep, condemned, "pod", "set", false},
		{"a pod that stays does not own it", keep, drop, stays, "pod", "", false},
		{"it goes with a condemned pod", keep, drop, condemned, "", "pod", false},
		{"nor does the set, if the claim outlives it", keep, drop, condemned, "set", "pod", false},
		{"the set owns it while the pod stays", drop, drop, stays, "", "set", false},
		{"then the pod does", drop, drop, condemned, "set", "pod", false},
		{"and the set again when the pod stays after all", drop, drop, stays, "pod", "set", false},
		{"what is right stays as it is", drop, drop, stays, "plain-other set", "plain-other set", false},
		{"an owner becomes the controller", drop, keep, stays, "plain-set", "set", false},
		{"another controller decides alone", drop, drop, stays, "other", "other", true},
		{"also if the set was one before", drop, drop, stays, "plain-set other", "other", true},
		{"a former set's claim is left alone", drop, drop, stays, "former-set", "former-set", true},
		{"a former pod's claim is left alone", keep, drop, condemned, "former-pod", "former-pod", true},
		{"a former pod's claim is left alone even if claims are retained now", keep, keep, stays, "former-pod", "former-pod", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			set := retaining(withClaims(web(c.replicas), "data"), c.whenDeleted, c.whenScaled)
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data-web-0", OwnerReferences: refs(c.have)}}
			got, conflict := owners(claim, set, newTestPod(set, "0 ready"))
			if describe(got) != c.want || conflict != c.conflict {
				t.Errorf("got %q, conflict %v; want %q, %v", describe(got), conflict, c.want, c.conflict)
			}
			if describe(claim.OwnerReferences) != c.have {
				t.Errorf("the cached claim was changed to %q", describe(claim.OwnerReferences))
			}
		})
	}
}

func TestClaimOfATemplate(t *testing.T) {
	set := retaining(withClaims(web(1), "data"), "Delete", "Delete")
	template := &set.Spec.VolumeClaimTemplates[0]
	template.Labels = map[string]string{"tier": "gold", "app": "other"}
	template.Annotations = map[string]string{"note": "kept"}
	claim := newClaim(set, template, 0)
	if claim.Namespace != "ns" || claim.Name != "data-web-0" || claim.Annotations["note"] != "kept" || describe(claim.OwnerReferences) != "set" {
		t.Errorf("%+v", claim.ObjectMeta)
	}
	if claim.Labels["tier"] != "gold" || claim.Labels["app"] != "web" {
		t.Errorf("labels %v, want the template's and over them the selector's", claim.Labels)
	}
	if template.Labels["app"] != "other" {
		t.Error("the template was changed")
	}
}

// TestClaimsThatAreAboutToGo makes a pod wait for its claim's end.
func TestClaimsThatAreAboutToGo(t *testing.T) {
	ending := func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{Time: now} }
	ownedBy := func(description string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.OwnerReferences = refs(description) }
	}
	cases := []struct {
		name   string
		set    *appsv1.StatefulSet
		change func(*corev1.PersistentVolumeClaim)
		want   string
	}{
		{"a claim that is being deleted holds up its pod, and the user is told", web(2), ending, "FailedCreate"},
		{"in parallel it holds up no other", parallel(web(2)), ending, "+data-web-1 +web-1 new FailedCreate"},
		{"a claim that goes with the former pod does, too", retaining(web(1), "Retain", "Delete"), ownedBy("former-pod"), ""},
		{"if claims are retained it is used as long as it is there", web(1), ownedBy("former-pod"), "+web-0 new"},
		{"the user is told of another controller", retaining(web(1), "Delete", "Delete"), ownedBy("other"), "+web-0 new ConflictingController"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := observe(withClaims(c.set, "data"), "", "data-web-0")
			c.change(o.claims["data-web-0"])
			if got := decide(o).String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestPodOfARevision(t *testing.T) {
	o := observe(withClaims(from(web(1), 7), "data"), "", "")
	o.set.Spec.Template.Spec.Hostname = "ignored"
	o.set.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "scratch"}, {Name: "data"}}
	pod := newStep(o).newPod(7)
	if pod.Name != "web-7" || pod.GenerateName != "web-" || pod.Spec.Hostname != "web-7" || pod.Spec.Subdomain != "svc" || !metav1.IsControlledBy(pod, o.set) {
		t.Errorf("%+v", pod)
	}
	for label, want := range map[string]string{
		appsv1.StatefulSetPodNameLabel: "web-7", appsv1.PodIndexLabel: "7", appsv1.StatefulSetRevisionLabel: "new", "app": "web",
	} {
		if pod.Labels[label] != want {
			t.Errorf("label %s is %q, want %q", label, pod.Labels[label], want)
		}
	}
	if v := pod.Spec.Volumes; len(v) != 2 || v[0].PersistentVolumeClaim.ClaimName != "data-web-7" || v[1].Name != "scratch" {
		t.Errorf("volumes %+v", v)
	}
	if len(o.set.Spec.Template.Labels) != 1 {
		t.Error("the template was changed")
	}
}

func TestRepair(t *testing.T) {
	set := withClaims(web(1), "data")
	cases := []struct {
		name   string
		damage func(*corev1.Pod)
		want   string
	}{
		{"a pod that is whole is left alone", func(*corev1.Pod) {}, ""},
		{"its name's label is given back", func(p *corev1.Pod) { delete(p.Labels, appsv1.StatefulSetPodNameLabel) }, "repair web-0"},
		{"a wrong one is corrected", func(p *corev1.Pod) { p.Labels[appsv1.StatefulSetPodNameLabel] = "web-1" }, "repair web-0"},
		{"a missing volume is given back", func(p *corev1.Pod) { p.Spec.Volumes = nil }, "repair web-0"},
		{"a pod that is not up yet waits", func(p *corev1.Pod) { p.Labels, p.Status.Phase = nil, corev1.PodPending }, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := observe(set, "0 ready", "data-web-0")
			whole := newTestPod(set, "0 ready")
			c.damage(o.pods[0])
			p := decide(o)
			if got := p.String(); got != c.want {
				t.Fatalf("got %q, want %q", got, c.want)
			}
			for _, w := range p.Replicas {
				pod := w.repair
				if pod == nil {
					continue
				}
				if pod.Labels[appsv1.StatefulSetPodNameLabel] != "web-0" || pod.Labels[appsv1.PodIndexLabel] != "0" || len(pod.Spec.Volumes) != len(whole.Spec.Volumes) {
					t.Errorf("repaired to %+v", pod)
				}
			}
		})
	}
}

func TestClaimsOfASet(t *testing.T) {
	set := withClaims(web(1), "data", "my-logs")
	var got []string
	for _, name := range []string{"data-web-0", "my-logs-web-12", "data-web", "data-web-x", "data-other-0", "logs-web-0", "data-web-1-0"} {
		if isClaimOf(set, name) {
			got = append(got, name)
		}
	}
	if want := []string{"data-web-0", "my-logs-web-12"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
