"""Everything a new cluster needs before its first process: namespace, cgroups, certificates, configuration files."""

from pathlib import Path

import yaml

from tuneloop_localcluster import cgroups, components, controlplane, kubeconfig, leftovers, network, nodeconfig
from tuneloop_localcluster.paths import Cache, State


def prepare(cache: Cache) -> None:
    """Make all of it; nothing of an older cluster may be left."""
    state = cache.full
    for folder in (state.config / "cni", state.kubelet, state.volumes, state.logs / "pods", cache.containerd):
        folder.mkdir(parents=True, exist_ok=True)
    leftovers.remember_sysctls(sysctls(state))
    cgroups.create()
    network.create()
    _certificates_and_kubeconfigs(cache)
    for path, content in files(cache).items():
        path.write_text(content)
    _mark(state).touch()


def finished(cache: Cache) -> bool:
    """Whether `prepare` came to its end for the cluster in the state folder."""
    return _mark(cache.full).exists()


def sysctls(state: State) -> Path:
    """Where the machine's own settings are remembered."""
    return state.root / "sysctls"


def _mark(state: State) -> Path:
    return state.root / "prepared"


def files(cache: Cache) -> dict[Path, str]:
    """Configuration files by path."""
    config = cache.full.config
    proxy = nodeconfig.kube_proxy(components.kubeconfig_of(cache.full, "kube-proxy"))
    return {
        config / "containerd.toml": nodeconfig.containerd(cache),
        config / "cni" / "10-tuneloop.conflist": nodeconfig.cni(cache.full.cni),
        config / "kubelet.yaml": yaml.safe_dump(nodeconfig.kubelet(cache)),
        config / "kube-proxy.yaml": yaml.safe_dump(proxy),
        config / "Corefile": nodeconfig.corefile(components.kubeconfig_of(cache.full, "coredns")),
        config / "resolv.conf": nodeconfig.resolv_conf(),
    }


def _certificates_and_kubeconfigs(cache: Cache) -> None:
    plane = components.control_plane(cache)
    authority = controlplane.prepare(plane)
    names = [nodeconfig.NODE_NAME, nodeconfig.NODE_ADDRESS]
    authority.issue("kubelet-server", f"system:node:{nodeconfig.NODE_NAME}", ["system:nodes"], sans=names)
    for client in components.CLIENTS:
        pair = authority.issue(client.name, client.user, client.groups)
        path = components.kubeconfig_of(cache.full, client.name)
        kubeconfig.write(path, plane.server, authority.files, pair, name=client.name)
