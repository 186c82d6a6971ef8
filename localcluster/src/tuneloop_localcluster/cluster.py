"""The full cluster: up, down, and how it heals.

etcd's data is kept only as long as etcd and containerd live. A cluster that lost one of them is cleared away whole and
started fresh, since its pods would come back as the corpses they are; images are kept, for they cost minutes. Any
other process that died is started again beside the living.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tuneloop_localcluster import (
    cgroups,
    components,
    controlplane,
    fresh,
    leftovers,
    network,
    node,
    pause,
    programs,
    requirements,
    versions,
    waiting,
)
from tuneloop_localcluster.background import in_background
from tuneloop_localcluster.components import CONTAINERD
from tuneloop_localcluster.paths import Cache
from tuneloop_localcluster.processes import Daemon, end
from tuneloop_localcluster.progress import Progress
from tuneloop_localcluster.runtime import Runtime

NAMES = (CONTAINERD, controlplane.ETCD, controlplane.APISERVER, *components.AFTER_APISERVER)


def healthy(cache: Cache) -> bool:
    """Whether every process runs, the API server answers and the node is Ready."""
    plane = components.control_plane(cache)
    return network.exists() and controlplane.alive(plane, NAMES) and node.ready(plane)


def up(cache: Cache, progress: Progress) -> None:
    """Start the cluster, or what is missing of it; change nothing if it is healthy."""
    if healthy(cache):
        progress.say("the cluster is up already")
        return
    requirements.require_root("a cluster of real nodes")
    requirements.require_disk(cache.root, requirements.RUN_GIB, "a cluster")
    provide(cache, progress)
    if not _core_lives(cache):
        _begin_anew(cache, progress)
    _start(cache, progress)


def provide(cache: Cache, progress: Progress) -> None:
    """Install packages and build programs; both at once, since one waits for the network and the other for the CPU."""
    if programs.missing(cache, versions.PROGRAM_SETS):
        requirements.require_disk(cache.root, requirements.BUILD_GIB, "building Kubernetes")
    join = in_background(lambda: requirements.install_packages(versions.PACKAGES, progress))
    programs.build(cache, versions.PROGRAM_SETS, progress)
    join()
    programs.link(cache)


def down(cache: Cache, progress: Progress, *, purge: bool = False) -> None:
    """End the cluster and take away every trace of it, whatever state it is in; with `purge` its images too."""
    requirements.require_root("ending a cluster of real nodes")
    plane = components.control_plane(cache)
    with progress.step("end the cluster and delete its state"):
        controlplane.stop(plane, components.END_ORDER)
        _end_pods(cache)
        _daemon(cache, CONTAINERD).stop()
        end(cgroups.members(), patience=0)
        _delete_traces(cache)
    if purge:
        with progress.step("delete images"):
            for folder in (cache.containerd, cache.buildah):
                leftovers.delete_folder(folder)


def _begin_anew(cache: Cache, progress: Progress) -> None:
    down(cache, progress)
    with progress.step("make namespace, cgroups, certificates and configuration"):
        fresh.prepare(cache)
    with progress.step("start containerd"):
        _start_containerd(cache)
        if Runtime(cache.full).delete_containers():
            # It read the dead containers into its memory as it started.
            _daemon(cache, CONTAINERD).stop()
            _start_containerd(cache)
        pause.provide(cache)


def _start(cache: Cache, progress: Progress) -> None:
    plane = components.control_plane(cache)
    with progress.step("start etcd and kube-apiserver"):
        controlplane.start(cache, plane, _launch)
    with progress.step("start controllers, scheduler, kubelet, proxy, DNS and provisioner"):
        node.apply_objects(cache)
        for name in components.AFTER_APISERVER:
            _launch(_daemon(cache, name), components.command(name, cache, lambda p: programs.program(cache, p)))
        node.wait(cache)


def _start_containerd(cache: Cache) -> None:
    daemon = _daemon(cache, CONTAINERD)
    _launch(daemon, components.containerd_command(cache))
    waiting.until("containerd to answer", Runtime(cache.full).answers, daemon=daemon)


def _daemon(cache: Cache, name: str) -> Daemon:
    return controlplane.daemon(components.control_plane(cache), name)


def _launch(daemon: Daemon, command: Sequence[str | Path]) -> None:
    daemon.start([*network.ENTER, *command], cgroups=[cgroups.create()])


def _core_lives(cache: Cache) -> bool:
    core = controlplane.running(components.control_plane(cache), (CONTAINERD, controlplane.ETCD))
    return core and fresh.finished(cache) and network.exists()


def _end_pods(cache: Cache) -> None:
    """End every container, and have containerd forget them while it can still delete their layers."""
    end(cgroups.pod_members(), patience=0)
    if _daemon(cache, CONTAINERD).pid is not None and Runtime(cache.full).answers():
        Runtime(cache.full).delete_containers()


def _delete_traces(cache: Cache) -> None:
    state = cache.full
    leftovers.unmount_below(state.root)
    leftovers.unmount_below(cache.containerd)
    network.delete()
    cgroups.delete()
    leftovers.delete_traces(state.root)
    leftovers.restore_sysctls(fresh.sysctls(state))
    if state.root.exists():
        shutil.rmtree(state.root)
