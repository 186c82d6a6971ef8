"""Commands of the full cluster's processes, and the order in which they start and end. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuneloop_localcluster import nodeconfig
from tuneloop_localcluster.apiserver import ControlPlane
from tuneloop_localcluster.paths import Cache, State
from tuneloop_localcluster.pki import pair

CONTAINERD = "containerd"
Find = Callable[[str], Path]


@dataclass(frozen=True)
class Client:
    """A certificate and kubeconfig for one component."""

    name: str
    user: str
    groups: tuple[str, ...] = ()


CLIENTS = (
    Client("kube-controller-manager", "system:kube-controller-manager"),
    Client("kube-scheduler", "system:kube-scheduler"),
    Client("kube-proxy", "system:kube-proxy"),
    Client("kubelet", f"system:node:{nodeconfig.NODE_NAME}", ("system:nodes",)),
    Client("coredns", "tuneloop:coredns"),
    Client("provisioner", "tuneloop:provisioner"),
)

# Started in this order once the API server is ready.
AFTER_APISERVER = ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns", "provisioner")
# Ended in this order: who restarts or writes to others ends before them.
END_ORDER = (*reversed(AFTER_APISERVER), "kube-apiserver", "etcd")


def control_plane(cache: Cache) -> ControlPlane:
    """Where the full cluster's control plane listens, inside its network namespace."""
    address, services = nodeconfig.NODE_ADDRESS, nodeconfig.SERVICE_RANGE
    return ControlPlane(cache.full, address, port=6443, etcd_port=2379, service_range=services)


def kubeconfig_of(state: State, name: str) -> Path:
    """The kubeconfig of a component."""
    return state.config / f"{name}.kubeconfig"


def containerd_command(cache: Cache) -> list[str]:
    """The container runtime."""
    return [CONTAINERD, "--config", str(cache.full.config / "containerd.toml")]


def command(name: str, cache: Cache, find: Find) -> list[str]:
    """The command of one of AFTER_APISERVER; `find` gives the path of a built program."""
    state = cache.full
    kubeconfig = kubeconfig_of(state, name)
    arguments = {
        "kube-controller-manager": [*_delegating(kubeconfig), *_controllers(state)],
        "kube-scheduler": _delegating(kubeconfig),
        "kubelet": [
            f"--config={state.config / 'kubelet.yaml'}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={state.kubelet}",
            f"--cert-dir={state.pki}",
            f"--hostname-override={nodeconfig.NODE_NAME}",
            f"--node-ip={nodeconfig.NODE_ADDRESS}",
        ],
        "kube-proxy": [f"--config={state.config / 'kube-proxy.yaml'}"],
        "coredns": ["-conf", str(state.config / "Corefile")],
        "provisioner": [f"--kubeconfig={kubeconfig}", f"--root={state.volumes}"],
    }
    return [str(find(name)), *arguments[name]]


def _delegating(kubeconfig: Path) -> list[str]:
    """Flags of a component that asks the API server who its own callers are."""
    flags = ("--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig")
    return [*(f"{flag}={kubeconfig}" for flag in flags), "--bind-address=127.0.0.1", "--leader-elect=false"]


def _controllers(state: State) -> list[str]:
    authority = pair(state.pki, "ca")
    return [
        f"--service-account-private-key-file={state.pki / 'service-accounts.key'}",
        f"--root-ca-file={authority.certificate}",
        f"--cluster-signing-cert-file={authority.certificate}",
        f"--cluster-signing-key-file={authority.key}",
        "--use-service-account-credentials=true",
        "--cluster-name=tuneloop",
        # Its default lies outside the state folder, and it makes the folder.
        f"--flex-volume-plugin-dir={state.kubelet / 'volume-plugins'}",
    ]
