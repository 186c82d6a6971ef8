"""The variant with only etcd and kube-apiserver, on the machine's loopback: for tests of the API, up in seconds."""

import shutil
import zlib
from pathlib import Path

from tuneloop_localcluster import controlplane, programs, requirements
from tuneloop_localcluster.apiserver import ControlPlane
from tuneloop_localcluster.paths import Cache
from tuneloop_localcluster.progress import Progress
from tuneloop_localcluster.versions import API_ONLY_PACKAGES, API_SERVER

NAMES = (controlplane.APISERVER, controlplane.ETCD)


PORT = 26443
ETCD_PORT = 22379  # and the one after it
OTHER_CACHES = 1000  # so many pairs of ports, all below the range that the kernel hands out


def plane(cache: Cache) -> ControlPlane:
    """Where it listens. The full cluster lives in a network namespace, so that both can run at once."""
    place, services = offset(cache.root), "198.18.144.0/24"
    return ControlPlane(
        cache.api_only,
        "127.0.0.1",
        port=PORT + place,
        etcd_port=ETCD_PORT + place,
        service_range=services,
        alone=True,
    )


def offset(root: Path) -> int:
    """What a cache adds to the ports: nothing for the user's own, else by its path, so that two can run at once."""
    if root == Path.home() / ".cache" / "tuneloop":
        return 0
    return 2 * (1 + zlib.crc32(str(root).encode()) % OTHER_CACHES)


def up(cache: Cache, progress: Progress) -> None:
    """Start it, unless it is up. A dead one is cleared away with its data first."""
    here = plane(cache)
    if controlplane.running(here, NAMES):
        # Others may be using it: a machine that is only slow must not cost them their data.
        controlplane.wait(here)
        progress.say("etcd and kube-apiserver are up already")
        return
    down(cache, progress)
    requirements.require_disk(cache.root, requirements.RUN_GIB, "a cluster")
    requirements.install_packages(API_ONLY_PACKAGES, progress)
    if programs.missing(cache, [API_SERVER]):
        requirements.require_disk(cache.root, requirements.BUILD_GIB, "building Kubernetes")
    programs.build(cache, [API_SERVER], progress)
    programs.link(cache)
    for port in (here.port, here.etcd_port, here.etcd_port + 1):
        requirements.require_free_port(here.address, port)
    with progress.step(f"start etcd and kube-apiserver at {here.server}"):
        controlplane.prepare(here)
        controlplane.start(cache, here, lambda daemon, command: daemon.start(command))


def down(cache: Cache, progress: Progress) -> None:
    """End both and delete their data."""
    here = plane(cache)
    if not here.state.root.exists():
        return
    with progress.step("end etcd and kube-apiserver"):
        controlplane.stop(here, NAMES)
        shutil.rmtree(here.state.root)
