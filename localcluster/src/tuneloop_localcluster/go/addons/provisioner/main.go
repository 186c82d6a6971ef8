// Command provisioner makes and deletes `local` volumes: one folder for each claim under one root of this machine.
//
// `local` rather than hostPath, because a pod's fsGroup is applied to the former only, and restricted pods are not root.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const provisionerName = "tuneloop.dev/local"

// localProvisioner keeps every volume in root/<name of the PersistentVolume>.
type localProvisioner struct{ root string }

// Provision makes the folder and describes it. A claim that cannot be served (a block device) is a final error.
func (p localProvisioner) Provision(_ context.Context, o controller.ProvisionOptions) (*v1.PersistentVolume, controller.ProvisioningState, error) {
	if mode := o.PVC.Spec.VolumeMode; mode != nil && *mode == v1.PersistentVolumeBlock {
		return nil, controller.ProvisioningFinished, fmt.Errorf("volumeMode Block is not served by storage class %s: use Filesystem", o.StorageClass.Name)
	}
	if o.SelectedNodeName == "" {
		return nil, controller.ProvisioningFinished, fmt.Errorf("no node was selected: storage class %s needs volumeBindingMode WaitForFirstConsumer", o.StorageClass.Name)
	}
	path := filepath.Join(p.root, o.PVName)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	return volume(o, path), controller.ProvisioningFinished, nil
}

// volume describes the folder at path as a PersistentVolume that only its own node can mount.
func volume(o controller.ProvisionOptions, path string) *v1.PersistentVolume {
	here := v1.NodeSelectorRequirement{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{o.SelectedNodeName}}
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *o.StorageClass.ReclaimPolicy,
			AccessModes:                   o.PVC.Spec.AccessModes,
			MountOptions:                  o.StorageClass.MountOptions,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: o.PVC.Spec.Resources.Requests[v1.ResourceStorage]},
			PersistentVolumeSource:        v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: path}},
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{
				NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{here}}},
			}},
		},
	}
}

// Delete removes the folder of a released volume, and nothing outside the root.
func (p localProvisioner) Delete(_ context.Context, pv *v1.PersistentVolume) error {
	if pv.Spec.Local == nil || filepath.Dir(pv.Spec.Local.Path) != p.root {
		return &controller.IgnoredError{Reason: "the volume is not a folder of this provisioner's root"}
	}
	return os.RemoveAll(pv.Spec.Local.Path)
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig of an account that may manage volumes and watch claims")
	root := flag.String("root", "", "absolute folder that holds the volumes")
	flag.Parse()
	if *kubeconfig == "" || !filepath.IsAbs(*root) {
		log.Fatal("give --kubeconfig FILE and --root with an absolute folder")
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatalf("kubeconfig %s: %v", *kubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		log.Fatalf("kubeconfig %s: %v", *kubeconfig, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	provisioner := localProvisioner{root: filepath.Clean(*root)}
	controller.NewProvisionController(ctx, client, provisionerName, provisioner, controller.LeaderElection(false), controller.MetricsPort(0)).Run(ctx)
}
