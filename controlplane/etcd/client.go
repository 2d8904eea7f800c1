package etcd

import (
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
)

// Client returns a client that calls the member's own functions for keys,
// watches and leases, with no gRPC and no connection between. Whatever else it
// is asked for goes through the socket. It is to be closed before the member.
func (m *Member) Client() (*kubernetes.Client, error) {
	client, err := kubernetes.New(clientv3.Config{
		Endpoints: []string{m.local},
		Logger:    zap.NewNop(), // errors are returned
	})
	if err != nil {
		return nil, fmt.Errorf("make etcd client: %w", err)
	}
	direct := v3client.New(m.etcd.Server)
	client.KV, client.Watcher, client.Lease = direct.KV, direct.Watcher, direct.Lease
	return client, nil
}
