package desired

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestMemoComputesWhatAFullComputationDoes changes a cluster at random, as
// informers show it, and compares after each step.
func TestMemoComputesWhatAFullComputationDoes(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, seed))
		in, memo := manyServices(12, 3), Memo{}
		for step := range 60 {
			what := change(&in, random)
			random.Shuffle(len(in.EndpointSlices), func(i, j int) {
				in.EndpointSlices[i], in.EndpointSlices[j] = in.EndpointSlices[j], in.EndpointSlices[i]
			})
			if got, want := memo.Compute(in), Compute(in); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d, step %d, %s:\n%v\nwant\n%v", seed, step, what, got.Services, want.Services)
			}
		}
	}
}

// change makes one change: objects are replaced, never modified.
func change(in *Inputs, random *rand.Rand) string {
	service := func(i int) *corev1.Service { return in.Services[i].DeepCopy() }
	i, j := random.IntN(len(in.Services)), random.IntN(len(in.EndpointSlices))
	switch random.IntN(8) {
	case 0:
		svc := service(i)
		svc.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
		in.Services[i] = svc
		return "a traffic policy"
	case 1:
		svc := service(i)
		svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, int32(30000+random.IntN(5))
		in.Services[i] = svc
		return "a node port, perhaps another's"
	case 2:
		svc := service(i)
		svc.Name = fmt.Sprintf("copy-%d", random.IntN(1000))
		in.Services = append(in.Services, svc)
		return "a second Service with the same address"
	case 3:
		if len(in.Services) > 1 {
			in.Services = slices.Delete(in.Services, i, i+1)
		}
		return "a Service less"
	case 4:
		slice := in.EndpointSlices[j].DeepCopy()
		slice.Endpoints = slice.Endpoints[:random.IntN(len(slice.Endpoints)+1)]
		in.EndpointSlices[j] = slice
		return "endpoints less"
	case 5:
		slice := in.EndpointSlices[j].DeepCopy()
		slice.Name = fmt.Sprintf("slice-%d", random.IntN(1000))
		slice.Labels = map[string]string{discoveryv1.LabelServiceName: in.Services[i].Name}
		in.EndpointSlices = append(in.EndpointSlices, slice)
		return "one more slice"
	case 6:
		if len(in.EndpointSlices) > 1 {
			in.EndpointSlices = slices.Delete(in.EndpointSlices, j, j+1)
		}
		return "a slice less"
	default:
		in.Nodes = []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{
			Name: in.NodeName, Labels: map[string]string{corev1.LabelTopologyZone: fmt.Sprint(random.IntN(2))}}}}
		return "the node's zone"
	}
}

// BenchmarkMemo is a pass after one of 10 000 Services has changed.
func BenchmarkMemo(b *testing.B) {
	in, memo := manyServices(10_000, 10), Memo{}
	memo.Compute(in)
	b.ReportAllocs()
	for b.Loop() {
		in.EndpointSlices[0] = in.EndpointSlices[0].DeepCopy()
		memo.Compute(in)
	}
}
