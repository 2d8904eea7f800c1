package controlplane

import (
	"context"
	"fmt"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"weft.dev/weft/controlplane/controllers"
	"weft.dev/weft/controlplane/upstream"
)

// ownControllers makes Weft's controllers on shared informers, each acting as
// the service account of its name.
func ownControllers(cfg Config, loopback *rest.Config) func(informers.SharedInformerFactory) ([]func(context.Context) error, error) {
	return func(shared informers.SharedInformerFactory) ([]func(context.Context) error, error) {
		clients := clientSet{loopback: loopback}
		runners, err := controllers.New(controllers.Deps{
			Client:       clients.get,
			Dynamic:      clients.dynamic,
			Informers:    shared,
			PodCIDRs:     cfg.PodCIDRs,
			NodeMaskIPv4: cfg.NodeMaskIPv4,
			NodeMaskIPv6: cfg.NodeMaskIPv6,
			Log:          cfg.Log,
		})
		if clients.err != nil {
			return nil, clients.err
		}
		if err != nil {
			return nil, fmt.Errorf("build controllers: %w", err)
		}
		var runs []func(context.Context) error
		for _, r := range runners {
			runs = append(runs, func(ctx context.Context) error {
				if err := r.Run(ctx); err != nil {
					return fmt.Errorf("run %s: %w", r.Name(), err)
				}
				return nil
			})
		}
		return runs, nil
	}
}

// clientSet makes clients and keeps the first error.
type clientSet struct {
	loopback *rest.Config
	err      error
}

func (c *clientSet) get(account string) kubernetes.Interface {
	client, err := kubernetes.NewForConfig(upstream.AsServiceAccount(c.loopback, account))
	if err != nil && c.err == nil {
		c.err = fmt.Errorf("make client of %s: %w", account, err)
	}
	return client
}

func (c *clientSet) dynamic(account string) dynamic.Interface {
	client, err := dynamic.NewForConfig(upstream.AsServiceAccount(c.loopback, account))
	if err != nil && c.err == nil {
		c.err = fmt.Errorf("make client of %s: %w", account, err)
	}
	return client
}
