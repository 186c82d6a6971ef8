"""Configuration files of the node's components. Pure: every function returns the file's content as a value."""

import json
from pathlib import Path
from typing import Any

from tuneloop_localcluster.paths import Cache
from tuneloop_localcluster.pki import pair

NAMESPACE = "tuneloop"
NODE_NAME = "tuneloop-node"
CGROUP = "tuneloop"
# 198.18.0.0/15 is set aside for tests of networks (RFC 2544), so it collides with no company's own ranges.
HOST_ADDRESS = "198.18.0.1"
NODE_ADDRESS = "198.18.0.2"
LINK_PREFIX = 30
POD_RANGE = "198.18.64.0/18"
SERVICE_RANGE = "198.18.128.0/20"
DNS_ADDRESS = "198.18.128.10"
DNS_READY_PORT = 8054
DOMAIN = "cluster.local"
CNI_NETWORK = "tuneloop-pods"
PAUSE_IMAGE = "localhost/tuneloop/pause:local"


def containerd(cache: Cache) -> str:
    """containerd's configuration: images in the cache, everything else in the state folder, cgroups by file system."""
    state = cache.full
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{cache.containerd}"
state = "{state.containerd}"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{state.containerd_socket}"

[debug]
level = "warn"

[plugins."io.containerd.internal.v1.opt"]
path = "{state.root / "opt"}"

[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
# Without it runc dies with "can't get final child's PID from pipe: EOF" where the score may not be lowered.
restrict_oom_score_adj = true
# So that one unmount below the state folder finds the namespaces of every dead pod.
netns_mounts_under_state_dir = true

[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
SystemdCgroup = false
Root = "{state.root / "runc"}"

[{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{state.config / "cni"}"
"""


def cni(addresses: Path) -> str:
    """Every pod on a link of its own to the node: all its packets are routed, so Services work without br_netfilter."""
    ipam = {
        "type": "host-local",
        "dataDir": str(addresses),
        "ranges": [[{"subnet": POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "0.4.0", "name": CNI_NETWORK, "plugins": plugins}, indent=2)


def kubelet(cache: Cache) -> dict[str, Any]:
    """KubeletConfiguration: cgroup v1 allowed, images never collected, some room left for the machine."""
    state = cache.full
    server = pair(state.pki, "kubelet-server")
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pair(state.pki, "ca").certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(server.certificate),
        "tlsPrivateKeyFile": str(server.key),
        "containerRuntimeEndpoint": f"unix://{state.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": DOMAIN,
        "resolvConf": str(state.config / "resolv.conf"),
        "podLogsDir": str(state.logs / "pods"),
        "volumePluginDir": str(state.kubelet / "volume-plugins"),
        "serializeImagePulls": False,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
        "systemReserved": {"cpu": "200m", "memory": "1Gi"},
        "enforceNodeAllocatable": ["pods"],
        "maxPods": 250,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "nodeStatusUpdateFrequency": "5s",
        "runtimeRequestTimeout": "10m",
    }


def kube_proxy(kubeconfig: Path) -> dict[str, Any]:
    """KubeProxyConfiguration; the zeros leave the machine's conntrack settings alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "mode": "iptables",
        "hostnameOverride": NODE_NAME,
        "clusterCIDR": POD_RANGE,
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "100ms"},
    }


def corefile(kubeconfig: Path) -> str:
    """CoreDNS answers for the cluster's own names and refuses all others: pods have no way out anyhow."""
    return f"""\
.:53 {{
    errors
    ready {NODE_ADDRESS}:{DNS_READY_PORT}
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
    cache 5 {DOMAIN}
}}
"""


def resolv_conf() -> str:
    """For pods with dnsPolicy Default: the machine's own name server is out of their reach."""
    return f"nameserver {DNS_ADDRESS}\n"
