package api

// Local volumes: directories of a node, one for each PersistentVolumeClaim of
// a StorageClass with LocalVolumeProvisioner. The control plane writes the
// PersistentVolumes, the node's agent makes and deletes the directories.
const (
	// LocalVolumeProvisioner is the provisioner of such a StorageClass.
	LocalVolumeProvisioner = "weft.dev/local"
	// LocalStorageClass is the StorageClass that every cluster starts with.
	LocalStorageClass = "local"
	// LocalVolumeFinalizer is on every local PersistentVolume whose data goes
	// with it. The node's agent takes it off when the data is gone.
	LocalVolumeFinalizer = "weft.dev/local-volume"
	// NodeLabel of a local PersistentVolume is the name of its node.
	NodeLabel = "weft.dev/node"
	// VolumesDirAnnotation of a Node is the directory that holds those of its
	// local volumes.
	VolumesDirAnnotation = "weft.dev/volumes-directory"
)
