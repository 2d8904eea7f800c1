package daemonset

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

// mortal is a controller that can be ended before the test is.
type mortal struct {
	*Controller
	life context.Context
}

func (m mortal) Run(context.Context) error { return m.Controller.Run(m.life) }

// TestControllerMayBeKilledAfterAnyWrite ends the controller after its first
// write, after its second, and so on, through creation and an update. What it
// remembered is lost; its successor finishes the work all the same.
func TestControllerMayBeKilledAfterAnyWrite(t *testing.T) {
	for kill := 1; kill <= 30; kill++ {
		synctest.Test(t, func(t *testing.T) {
			w := world{testcluster.New(t), t}
			for _, n := range machines(3) {
				w.addNode(n)
			}
			w.Nodes(time.Second, 2*time.Second)
			start := func() (stop func()) {
				c, err := New(w.Env("daemon-set-controller"))
				if err != nil {
					t.Fatal(err)
				}
				life, stop := context.WithCancel(t.Context())
				w.Run(mortal{c, life})
				return stop
			}
			stop := start()
			writes := 0
			w.Refuse(func(a kubetesting.Action) error {
				if !byController(a) {
					return nil
				}
				if writes++; writes > kill {
					stop()
					return errors.New("killed")
				}
				return nil
			})
			w.create(agent())
			w.Pass(5 * time.Second)
			if writes <= kill {
				w.edit(image("v2"))
				w.Pass(20 * time.Second)
			}
			stop()
			w.Refuse(nil)
			defer start()()
			w.edit(image("v2"))
			w.Pass(time.Minute)
			w.expect("n0 v2", "n1 v2", "n2 v2")
			w.expectStatus("3/3/3 of 3")
			if r := w.revisions(); len(r) > 2 {
				t.Errorf("%d revisions", len(r))
			}
			if t.Failed() {
				t.Logf("killed after %d of %d writes", kill, writes)
			}
			w.Pass(time.Second)
		})
	}
}

// byController tells the controller's writes from those of users and nodes.
func byController(a kubetesting.Action) bool {
	switch a.GetResource().Resource + "/" + a.GetSubresource() {
	case "controllerrevisions/", "daemonsets/status":
		return true
	case "pods/":
		deletion, ok := a.(kubetesting.DeleteActionImpl)
		return a.GetVerb() == "create" || ok && deletion.DeleteOptions.Preconditions != nil
	}
	return false
}
