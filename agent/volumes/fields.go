package volumes

import (
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// sourceField returns the JSON name of the field that a volume's source sets, for messages about those not supported.
func sourceField(source *corev1.VolumeSource) string { return setField(source) }

// persistentSourceField is sourceField for a persistent volume.
func persistentSourceField(source *corev1.PersistentVolumeSource) string { return setField(source) }

// setField returns the JSON name of the first field of a struct of pointers that is set.
func setField(source any) string {
	value := reflect.ValueOf(source).Elem()
	for i := range value.NumField() {
		if !value.Field(i).IsNil() {
			name, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ",")
			return name
		}
	}
	return "(no source)"
}
