package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Claimant is an object that controls others by selector.
type Claimant struct {
	Object   metav1.Object
	Kind     schema.GroupVersionKind
	Selector labels.Selector
	// Accepts, if set, says which objects are eligible besides what Selector says.
	Accepts func(metav1.Object) bool
	// Live reads Object from the API server, past every cache.
	Live func(ctx context.Context) (metav1.Object, error)
	// Finalizers are set with adoption and taken away with release.
	Finalizers []string
}

// Claim adopts those of objects that match the claimant's selector and have
// no controller, releases those that it controls but that no longer match, and returns
// those that it controls now. Patches are strategic merge patches that fail
// if the object's UID changed.
//
// Before the first adoption the claimant is read live: a cache may still show
// a claimant that has since been deleted with its dependents orphaned, and adopting them again would
// undo that. A claimant that is being deleted adopts and releases nothing.
func Claim[T metav1.Object](ctx context.Context, claimant Claimant, objects []T, patch func(ctx context.Context, object T, data []byte) error) ([]T, error) {
	var (
		mine     []T
		errs     []error
		deleting = claimant.Object.GetDeletionTimestamp() != nil
		mayAdopt = onceMayAdopt(claimant)
	)
	for _, object := range objects {
		ref := metav1.GetControllerOfNoCopy(object)
		matches := claimant.Selector.Matches(labels.Set(object.GetLabels())) && (claimant.Accepts == nil || claimant.Accepts(object))
		switch {
		case ref != nil && ref.UID != claimant.Object.GetUID():
		case ref != nil && matches:
			mine = append(mine, object)
		case ref != nil && !deleting:
			errs = append(errs, ignoreGone(patch(ctx, object, releasePatch(claimant, object))))
		case ref == nil && matches && !deleting && object.GetDeletionTimestamp() == nil:
			err := mayAdopt(ctx)
			if err == nil {
				err = patch(ctx, object, adoptPatch(claimant, object))
			}
			if err == nil {
				mine = append(mine, object)
			} else if !apierrors.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("adopt %s: %w", object.GetName(), err))
			}
		}
	}
	return mine, errors.Join(errs...)
}

// onceMayAdopt returns a check that reads the claimant live when first asked.
func onceMayAdopt(claimant Claimant) func(context.Context) error {
	var asked bool
	var answer error
	return func(ctx context.Context) error {
		if !asked {
			asked, answer = true, checkLive(ctx, claimant)
		}
		return answer
	}
}

func checkLive(ctx context.Context, claimant Claimant) error {
	live, err := claimant.Live(ctx)
	switch {
	case apierrors.IsNotFound(err):
		// Not wrapped: a caller would take it for the orphan that is gone.
		return fmt.Errorf("owner %s is gone: %w", claimant.Object.GetName(), ErrStale)
	case err != nil:
		return fmt.Errorf("read owner: %w", err)
	case live.GetUID() != claimant.Object.GetUID():
		return fmt.Errorf("owner %s was replaced by another of the same name", claimant.Object.GetName())
	case live.GetDeletionTimestamp() != nil:
		return fmt.Errorf("owner %s is being deleted", claimant.Object.GetName())
	}
	return nil
}

// ignoreGone drops the errors of a release that has become unnecessary: the
// object is gone, or it has no such owner (422).
func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
		return nil
	}
	return err
}

type metadataPatch struct {
	UID             types.UID `json:"uid"`
	OwnerReferences []any     `json:"ownerReferences"`
	Finalizers      []string  `json:"finalizers,omitempty"`
	DropFinalizers  []string  `json:"$deleteFromPrimitiveList/finalizers,omitempty"`
}

func adoptPatch(claimant Claimant, object metav1.Object) []byte {
	return encodePatch(metadataPatch{
		UID:             object.GetUID(),
		OwnerReferences: []any{metav1.NewControllerRef(claimant.Object, claimant.Kind)},
		Finalizers:      claimant.Finalizers,
	})
}

func releasePatch(claimant Claimant, object metav1.Object) []byte {
	return encodePatch(metadataPatch{
		UID:             object.GetUID(),
		OwnerReferences: []any{map[string]any{"$patch": "delete", "uid": claimant.Object.GetUID()}},
		DropFinalizers:  claimant.Finalizers,
	})
}

func encodePatch(metadata metadataPatch) []byte {
	data, _ := json.Marshal(map[string]any{"metadata": metadata}) // strings only: cannot fail
	return data
}

// MayAdopt returns the keys of those objects whose selector matches orphan. An
// empty or malformed selector matches nothing.
func MayAdopt[T metav1.Object](objects []T, selectorOf func(T) *metav1.LabelSelector, orphan labels.Set) []types.NamespacedName {
	var keys []types.NamespacedName
	for _, object := range objects {
		selector, err := metav1.LabelSelectorAsSelector(selectorOf(object))
		if err == nil && !selector.Empty() && selector.Matches(orphan) {
			keys = append(keys, KeyOf(object))
		}
	}
	return keys
}
