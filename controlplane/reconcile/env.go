package reconcile

import (
	"log/slog"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
)

// Env is what a controller is made from.
type Env struct {
	// Name of the controller and of the service account it acts as.
	Name string
	// Client acts as the controller.
	Client kubernetes.Interface
	// Informers are shared by all controllers. Whoever made them starts them
	// when every controller exists.
	Informers informers.SharedInformerFactory
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// NewLoop makes the controller's loop; name and log come from e.
func (e Env) NewLoop(cfg Config) *Loop {
	cfg.Name, cfg.Log = e.Name, e.Log
	return NewLoop(cfg)
}

// NewEvents makes the controller's events.
func (e Env) NewEvents() *Events { return NewEvents(e.Client, e.Name) }
