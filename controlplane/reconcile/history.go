package reconcile

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// ErrCollision says that another template's revision already has the name of
// a new one. The owner adds 1 to its status.collisionCount, which changes the
// name, and tries again.
var ErrCollision = errors.New("revision name is taken")

// Versioned is an object whose pod template has a history: a DaemonSet or a StatefulSet.
type Versioned struct {
	Object   metav1.Object
	Kind     schema.GroupVersionKind
	Template *corev1.PodTemplateSpec
	// Collisions is the object's status.collisionCount.
	Collisions *int32
	// HashLabel is the label under which a revision carries its hash.
	HashLabel string
}

// History is what an owner's ControllerRevisions say about its present
// template. A step of an owner uses it like this:
//
//	revisions, err := c.revisions.Claim(ctx, claimant)   // adopts, releases
//	history := reconcile.NewHistory(versioned, revisions) // pure
//	plan := decide(…, history, …)                         // pods get the hash or the name of history.Current
//	err = c.revisions.Ensure(ctx, history)                // before the first pod that refers to Current
//	if errors.Is(err, reconcile.ErrCollision) { … }       // status.collisionCount++, then once more
//	err = c.revisions.Remove(ctx, history.Surplus(limit, isLive))
type History struct {
	// Current has the owner's template. It may not exist yet, or not with
	// this Revision; its name and its labels are final. Never modify it.
	Current *appsv1.ControllerRevision
	// Equal holds all that have the owner's template, Current among them.
	// There are several only if somebody else made one.
	Equal []*appsv1.ControllerRevision
	// Old holds all but Current, oldest first.
	Old []*appsv1.ControllerRevision

	owner   Versioned
	pending pending
}

// pending is what Ensure has to do.
type pending int

const (
	nothing pending = iota
	create
	renumber
)

// NewHistory finds the owner's template among its revisions. If there is none,
// Current is a new one. If it is an old one, because the owner was rolled
// back, it becomes the one with the highest Revision again.
func NewHistory(owner Versioned, revisions []*appsv1.ControllerRevision) History {
	h := History{owner: owner}
	data := RevisionData(owner.Template)
	same := func(r *appsv1.ControllerRevision) bool { return bytes.Equal(r.Data.Raw, data) }
	if !slices.ContainsFunc(revisions, same) {
		// The same template may have been written in other words, by an
		// older version of the API; that is no reason to replace pods.
		same = func(r *appsv1.ControllerRevision) bool {
			template, err := TemplateOf(r)
			return err == nil && equality.Semantic.DeepEqual(template, owner.Template)
		}
	}
	for _, r := range slices.SortedFunc(slices.Values(revisions), byRevision) {
		if same(r) {
			h.Equal = append(h.Equal, r)
			h.Current = r
		}
		h.Old = append(h.Old, r)
	}
	h.Old = slices.DeleteFunc(h.Old, func(r *appsv1.ControllerRevision) bool { return r == h.Current })

	var highest int64
	if len(h.Old) > 0 {
		highest = h.Old[len(h.Old)-1].Revision
	}
	switch {
	case h.Current == nil:
		h.pending = create
		h.Current = newRevision(owner, data, highest+1)
		h.Equal = append(h.Equal, h.Current)
	case h.Current.Revision <= highest:
		h.pending = renumber
		renumbered := *h.Current
		renumbered.Revision = highest + 1
		h.Equal[len(h.Equal)-1], h.Current = &renumbered, &renumbered
	}
	return h
}

// byRevision puts older revisions first.
func byRevision(a, b *appsv1.ControllerRevision) int {
	return cmp.Or(
		cmp.Compare(a.Revision, b.Revision),
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(a.Name, b.Name),
	)
}

// HashOf returns the hash that a revision carries. One that somebody made
// without the label goes by its name.
func (h History) HashOf(revision *appsv1.ControllerRevision) string {
	if hash, ok := revision.Labels[h.owner.HashLabel]; ok {
		return hash
	}
	return revision.Name
}

// Surplus returns the oldest revisions beyond limit. Those that isLive do not
// count, and stay.
func (h History) Surplus(limit int, isLive func(*appsv1.ControllerRevision) bool) []*appsv1.ControllerRevision {
	unused := slices.DeleteFunc(slices.Clone(h.Old), isLive)
	return unused[:max(len(unused)-max(limit, 0), 0)]
}

// RevisionData returns what a revision keeps of a template: the strategic
// merge patch that puts it back, which is what `kubectl rollout undo` sends.
// kubectl compares its bytes, so they are the same as upstream's.
func RevisionData(template *corev1.PodTemplateSpec) []byte {
	// A template came out of JSON, so none of these can fail.
	typed, _ := json.Marshal(template)
	decoder := json.NewDecoder(bytes.NewReader(typed))
	decoder.UseNumber()
	fields := map[string]any{}
	_ = decoder.Decode(&fields)
	fields["$patch"] = "replace"
	data, _ := json.Marshal(map[string]any{"spec": map[string]any{"template": fields}})
	return data
}

// TemplateOf returns the template that a revision keeps.
func TemplateOf(revision *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var patch struct {
		Spec struct{ Template *corev1.PodTemplateSpec }
	}
	if err := json.Unmarshal(revision.Data.Raw, &patch); err != nil {
		return nil, fmt.Errorf("read revision %s: %w", revision.Name, err)
	}
	if patch.Spec.Template == nil {
		return nil, fmt.Errorf("revision %s has no pod template", revision.Name)
	}
	return patch.Spec.Template, nil
}

func newRevision(owner Versioned, data []byte, number int64) *appsv1.ControllerRevision {
	hash := revisionHash(data, owner.Collisions)
	labels := maps.Clone(owner.Template.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[owner.HashLabel] = hash
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.Object.GetNamespace(),
			Name:      revisionName(owner.Object.GetName(), hash),
			Labels:    labels,
			// `kubectl rollout history` shows kubernetes.io/change-cause.
			Annotations:     maps.Clone(owner.Object.GetAnnotations()),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner.Object, owner.Kind)},
		},
		Data:     runtime.RawExtension{Raw: data},
		Revision: number,
	}
}

func revisionHash(data []byte, collisions *int32) string {
	hash := fnv.New32()
	hash.Write(data)
	if collisions != nil {
		hash.Write([]byte(strconv.Itoa(int(*collisions))))
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(hash.Sum32()), 10))
}

// revisionName fits into the limit that names have.
func revisionName(owner, hash string) string {
	longest := validation.DNS1123SubdomainMaxLength - len(hash) - 1
	return owner[:min(len(owner), longest)] + "-" + hash
}

// --- API calls ---

// Revisions reads and writes ControllerRevisions for the controller of one kind.
type Revisions struct {
	client   kubernetes.Interface
	informer cache.SharedIndexInformer
	of       ByController[*appsv1.ControllerRevision]
	fence    *Fence
}

// NewRevisions reads from the shared informer; the controller must watch
// Informer, with WatchOwned. Writes are noted in fence, under the owner's key.
func NewRevisions(env Env, fence *Fence) (*Revisions, error) {
	informer := env.Informers.Apps().V1().ControllerRevisions().Informer()
	of, err := NewByController[*appsv1.ControllerRevision](informer)
	return &Revisions{env.Client, informer, of, fence}, err
}

// Informer is where the revisions are read from.
func (r *Revisions) Informer() cache.SharedIndexInformer { return r.informer }

// Claim returns the claimant's revisions after adoption and release.
func (r *Revisions) Claim(ctx context.Context, claimant Claimant) ([]*appsv1.ControllerRevision, error) {
	owner := claimant.Object
	candidates := append(r.of.Of(owner.GetUID()), r.of.Orphans(owner.GetNamespace())...)
	return Claim(ctx, claimant, candidates, func(ctx context.Context, revision *appsv1.ControllerRevision, data []byte) error {
		patched, err := r.client.AppsV1().ControllerRevisions(revision.Namespace).
			Patch(ctx, revision.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{})
		if err == nil {
			r.fence.Wrote(KeyOf(owner), r.informer.GetStore(), patched.ResourceVersion)
		}
		return err
	})
}

// Ensure makes the API server hold h.Current. It costs nothing if it does.
// The errors to expect are ErrCollision, ErrStale and conflicts.
func (r *Revisions) Ensure(ctx context.Context, h History) error {
	var (
		api     = r.client.AppsV1().ControllerRevisions(h.Current.Namespace)
		written *appsv1.ControllerRevision
		err     error
	)
	switch h.pending {
	case nothing:
		return nil
	case renumber:
		written, err = api.Update(ctx, h.Current, metav1.UpdateOptions{})
	case create:
		written, err = api.Create(ctx, h.Current, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = r.whyTaken(ctx, h)
		}
	}
	if err != nil {
		return fmt.Errorf("write revision %s: %w", h.Current.Name, err)
	}
	r.fence.Wrote(KeyOf(h.owner.Object), r.informer.GetStore(), written.ResourceVersion)
	return nil
}

// whyTaken looks at the revision that has the new one's name: it is the new
// one itself or an orphan to adopt, and the cache is slow, or it is another.
func (r *Revisions) whyTaken(ctx context.Context, h History) error {
	live, err := r.client.AppsV1().ControllerRevisions(h.Current.Namespace).Get(ctx, h.Current.Name, metav1.GetOptions{})
	switch {
	case err != nil:
		return err
	case !bytes.Equal(live.Data.Raw, h.Current.Data.Raw):
		return ErrCollision
	case metav1.IsControlledBy(live, h.owner.Object):
		return ErrStale
	case metav1.GetControllerOfNoCopy(live) == nil && labels.SelectorFromSet(h.Current.Labels).Matches(labels.Set(live.Labels)):
		return ErrStale
	}
	return ErrCollision
}

// Remove deletes revisions. Those that are gone already do not matter.
func (r *Revisions) Remove(ctx context.Context, revisions []*appsv1.ControllerRevision) error {
	for _, revision := range revisions {
		err := r.client.AppsV1().ControllerRevisions(revision.Namespace).
			Delete(ctx, revision.Name, *metav1.NewPreconditionDeleteOptions(string(revision.UID)))
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete revision %s: %w", revision.Name, err)
		}
	}
	return nil
}
