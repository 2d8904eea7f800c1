package apiserver

import (
	"context"
	"sync"

	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	"k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/pkg/kubeapiserver"
)

// useStoreInProcess has every resource kept through clients from open instead
// of connections to the store, until ctx ends. The store's few other users, which are
// health checks and the allocators of Services' addresses, keep theirs.
func useStoreInProcess(ctx context.Context, config *app.Config, open func() (*kubernetes.Client, error)) error {
	client, err := open()
	if err != nil {
		return err
	}
	compactor := etcd3.StartCompactorPerEndpoint(client.Client, config.Options.Etcd.StorageConfig.CompactionInterval)
	context.AfterFunc(ctx, func() {
		compactor.Stop()
		client.Close()
	})
	for _, options := range []*generic.RESTOptionsGetter{
		&config.KubeAPIs.ControlPlane.Generic.RESTOptionsGetter,
		&config.ApiExtensions.GenericConfig.RESTOptionsGetter,
		&config.ApiExtensions.ExtraConfig.CRDRESTOptionsGetter,
		&config.Aggregator.GenericConfig.RESTOptionsGetter,
	} {
		*options = inProcessStore{*options, open, compactor}
	}
	return nil
}

// inProcessStore says for each resource what upstream says, but for how its
// store is reached.
type inProcessStore struct {
	generic.RESTOptionsGetter
	open      func() (*kubernetes.Client, error)
	compactor etcd3.Compactor
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (s inProcessStore) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	options, err := s.RESTOptionsGetter.GetRESTOptions(resource, example)
	options.Decorator = s.keep
	return options, err
}

// keep returns a resource's store, behind a watch cache unless upstream keeps
// this resource without one, and how to close it.
func (s inProcessStore) keep(
	config *storagebackend.ConfigForResource,
	resourcePrefix string,
	keyOf func(runtime.Object) (string, error),
	newObject, newList func() runtime.Object,
	attributesOf storage.AttrFunc,
	triggers storage.IndexerFuncs,
	indexers *cache.Indexers,
) (storage.Interface, factory.DestroyFunc, error) {
	client, err := s.open()
	if err != nil {
		return nil, nil, err
	}
	client.KV = etcd3.NewETCDLatencyTracker(client.KV)
	transformer := config.Transformer
	if transformer == nil {
		transformer = identity.NewEncryptCheckTransformer()
	}
	versioner := storage.APIObjectVersioner{}
	decoder := etcd3.NewDefaultDecoder(config.Codec, versioner)
	mayDeleteCorrupt := feature.DefaultFeatureGate.Enabled(features.AllowUnsafeMalformedObjectDeletion)
	if mayDeleteCorrupt {
		transformer = etcd3.WithCorruptObjErrorHandlingTransformer(transformer)
		decoder = etcd3.WithCorruptObjErrorHandlingDecoder(decoder)
	}
	store, err := etcd3.New(client, s.compactor, config.Codec, newObject, newList, config.Prefix, resourcePrefix, config.GroupResource,
		transformer, config.LeaseManagerConfig, decoder, versioner)
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	// A resource's store is closed once for each of its subresources.
	closeStore := sync.OnceFunc(func() {
		store.Close()
		client.Close()
	})
	var raw storage.Interface = store
	if mayDeleteCorrupt {
		raw = etcd3.NewStoreWithUnsafeCorruptObjectDeletion(raw, config.GroupResource)
	}
	if size, isSet := kubeapiserver.DefaultWatchCacheSizes()[config.GroupResource]; isSet && size == 0 {
		return raw, closeStore, nil
	}
	watched, err := cacher.NewCacherFromConfig(cacher.Config{
		Storage:             raw,
		Versioner:           versioner,
		GroupResource:       config.GroupResource,
		EventsHistoryWindow: config.EventsHistoryWindow,
		ResourcePrefix:      resourcePrefix,
		KeyFunc:             keyOf,
		NewFunc:             newObject,
		NewListFunc:         newList,
		GetAttrsFunc:        attributesOf,
		IndexerFuncs:        triggers,
		Indexers:            indexers,
		Codec:               config.Codec,
	})
	if err != nil {
		closeStore()
		return nil, nil, err
	}
	delegator := cacher.NewCacheDelegator(watched, raw)
	return delegator, sync.OnceFunc(func() {
		delegator.Stop()
		watched.Stop()
		closeStore()
	}), nil
}
