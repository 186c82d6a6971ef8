"""Images of the checkout as the cluster wants them: built if they are not, and imported into containerd or pushed.

refs = images.ensure(["operator", "trainer"])   # {"operator": "localhost/tuneloop/operator:<tag>", ...}
"""

import fcntl
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from tuneloop_localcluster import contexts, imagetable, pause, requirements, transfer
from tuneloop_localcluster.buildah import Buildah
from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.imagetable import BASE, PAUSE
from tuneloop_localcluster.paths import Cache, cache, repository
from tuneloop_localcluster.progress import Progress
from tuneloop_localcluster.runtime import Runtime

# Tags of one image that are kept: a cluster may still run the last ones.
_KEPT = 3
# Two builds at once: one downloads while the other unpacks or compiles.
_SIDE_BY_SIDE = 2
# Seen at its peak: a store, a content store and a snapshot each hold a copy of a layer.
_GIB = {BASE: 1.5, "torch-base": 14.0, "trainer": 3.0, "server": 8.0}
_PACKAGES = ("buildah", "debootstrap", "git", "ca-certificates")


def references(names: Iterable[str]) -> dict[str, str]:
    """The local references of these images and of all that they are based on, from the checkout as it is now."""
    known: dict[str, str] = {}
    for name in imagetable.in_build_order(names):
        known[name] = imagetable.reference(name, _tag(name, known))
    return known


def _tag(name: str, known: dict[str, str]) -> str:
    if name in (BASE, PAUSE):
        return imagetable.base_tag()
    image = imagetable.image(name)
    bases = {argument: known[base] for argument, base in image.bases.items()}
    return imagetable.tag(image, contexts.contents(repository(), image), bases)


def ensure(names: Iterable[str], *, registry: str = "", progress: Progress | None = None) -> dict[str, str]:
    """Build what is not built and hand it to the cluster; returns the reference of each name.

    Without `registry` the local cluster's containerd gets them (it must be up). With `registry` (HOST/PREFIX) they
    are pushed there and the references name it. What is there already costs nothing.
    """
    wanted, progress = list(dict.fromkeys(names)), progress or Progress()
    known = references(wanted)
    if registry:
        build(wanted, progress)
        return {name: _push(known[name], registry, progress) for name in wanted if name != PAUSE}
    load(wanted, progress)
    return {name: known[name] for name in wanted}


def load(names: list[str], progress: Progress) -> None:
    """Build and import what containerd lacks."""
    here = cache()
    runtime = Runtime(here.full)
    if not runtime.answers():
        raise ClusterError("the local cluster is not up: run `localcluster up` first, or give --registry HOST/PREFIX")
    known, held = references(names), runtime.images()
    lacking = [name for name in names if known[name] not in held]
    if not lacking:
        return
    build(lacking, progress)
    with _alone(here):
        for name in lacking:
            _import(name, known[name], runtime, progress)


def _import(name: str, reference: str, runtime: Runtime, progress: Progress) -> None:
    if name == PAUSE:
        pause.provide(cache())
    elif reference not in runtime.images():
        with progress.step(f"import {reference}"):
            transfer.import_image(Buildah(cache()), runtime, reference, cache().root / "contexts" / "transfer")
            runtime.discard_layers(reference)
            runtime.delete_images(_forgotten(name, runtime.images(), Buildah(cache()).references()))


def build(names: list[str], progress: Progress) -> None:
    """Build what buildah's store lacks of these and of all that they are based on, side by side where it can be."""
    here = cache()
    requirements.install_packages(_PACKAGES, progress)
    requirements.require_root("building images")
    with _alone(here):
        buildah = Buildah(here)
        known = references(names)
        held = set(buildah.references())
        lacking = [name for name in imagetable.in_build_order(names) if name != PAUSE and known[name] not in held]
        if not lacking:
            return
        requirements.require_disk(here.root, sum(_GIB.get(name, 1.0) for name in lacking), "building images")
        buildah.unmount()
        _build_all(lacking, known, buildah, progress)
        for name in lacking:
            buildah.delete(outdated(name, buildah.references(), known[name]))


def _build_all(lacking: list[str], known: dict[str, str], buildah: Buildah, progress: Progress) -> None:
    """Build in order, two at once; each waits for its own bases, which were begun before it."""
    begun: dict[str, Future[None]] = {}

    def work(name: str) -> None:
        bases = imagetable.IMAGES[name].bases.values() if name != BASE else ()
        for base in bases:
            if base in begun:
                begun[base].result()
        with progress.step(f"build {known[name]}", announce=True):
            _build(name, known, buildah)

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for name in lacking:
            begun[name] = pool.submit(work, name)
    for future in begun.values():
        future.result()


def _build(name: str, known: dict[str, str], buildah: Buildah) -> None:
    if name == BASE:
        buildah.build_base(known[name])
        return
    image = imagetable.image(name)
    bases = {argument: known[base] for argument, base in image.bases.items()}
    buildah.build(image, known[name], {**image.arguments, **bases})


def _push(reference: str, registry: str, progress: Progress) -> str:
    target = f"{registry.rstrip('/')}/{reference.rsplit('/', 1)[-1]}"
    with progress.step(f"push {target}"):
        Buildah(cache()).push(reference, target)
    return target


def outdated(name: str, newest_first: Iterable[str], current: str) -> list[str]:
    """References of the same image beyond the ones that are kept; never the current one."""
    own = [ref for ref in newest_first if ref.startswith(f"{imagetable.PREFIX}/{name}:") and ref != current]
    return own[_KEPT - 1 :]


def _forgotten(name: str, held: Iterable[str], built: Iterable[str]) -> list[str]:
    """References of the image that containerd holds though the store of builds has dropped them."""
    return sorted(ref for ref in set(held) - set(built) if ref.startswith(f"{imagetable.PREFIX}/{name}:"))


@contextmanager
def _alone(here: Cache) -> Iterator[None]:
    """One process at a time builds and imports: the disk and the store stand no more."""
    here.image_lock.parent.mkdir(parents=True, exist_ok=True)
    with here.image_lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
