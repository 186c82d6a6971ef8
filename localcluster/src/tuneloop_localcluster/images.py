"""Images of the checkout as the cluster wants them: built if they are not, and imported into containerd or pushed.

refs = images.ensure(["operator", "trainer"])   # {"operator": "localhost/tuneloop/operator:<tag>", ...}
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuneloop_localcluster import contexts, imagetable, pause, requirements, transfer
from tuneloop_localcluster.buildah import Buildah
from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.imagetable import BASE, PAUSE
from tuneloop_localcluster.locks import alone_if_free, exclusively, together
from tuneloop_localcluster.paths import cache, repository
from tuneloop_localcluster.progress import Progress
from tuneloop_localcluster.runtime import Runtime

# Tags of one image that are kept: a cluster may still run the last ones.
_KEPT = 3
_LARGE = "torch-base"
# Two builds at once: one downloads while the other unpacks or compiles.
_SIDE_BY_SIDE = 2
# Seen at its peak: a store, a content store and a snapshot each hold a copy of a layer.
_GIB = {BASE: 1.5, "torch-base": 14.0, "trainer": 3.0, "server": 8.0}
_PACKAGES = ("buildah", "debootstrap", "git", "ca-certificates")


@dataclass(frozen=True)
class Snapshot:
    """The checkout as it was at one moment: a folder with each image's context, and the references that follow."""

    folder: Path
    references: dict[str, str]


def ensure(names: Iterable[str], *, registry: str = "", progress: Progress | None = None) -> dict[str, str]:
    """Build what is not built and hand it to the cluster; returns the reference of each name.

    Without `registry` the local cluster's containerd gets them (it must be up). With `registry` (HOST/PREFIX) they
    are pushed there and the references name it. What is there already costs nothing.
    """
    wanted, progress = list(dict.fromkeys(names)), progress or Progress()
    if registry:
        built = build(wanted, progress)
        return {name: _push(built[name], registry, progress) for name in wanted if name != PAUSE}
    known = references(wanted)
    runtime = Runtime(cache().full)
    if not runtime.answers():
        raise ClusterError("the local cluster is not up: run `localcluster up` first, or give --registry HOST/PREFIX")
    held = runtime.images()
    lacking = [name for name in wanted if known[name] not in held]
    if lacking:
        known |= build(lacking, progress)
    for name in lacking:
        _import(name, known[name], runtime, progress)
    return {name: known[name] for name in wanted}


def references(names: Iterable[str]) -> dict[str, str]:
    """The local references of these images and of all that they are based on, from the checkout as it is now."""
    here = repository()
    order = imagetable.in_build_order(names)
    read = {
        n: contexts.contents(here, contexts.files(here, imagetable.image(n))) for n in order if n in imagetable.IMAGES
    }
    return imagetable.references(order, read)


@contextmanager
def _snapshot(names: Iterable[str]) -> Iterator[Snapshot]:
    """Copy the contexts aside, so that what is built is what the tags say even if the checkout changes meanwhile."""
    order = imagetable.in_build_order(names)
    parent = cache().root / "contexts"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as made:
        folder = Path(made)
        staged = [imagetable.image(name) for name in order if name in imagetable.IMAGES]
        copied = {image.name: contexts.stage(repository(), image, folder / image.name) for image in staged}
        yield Snapshot(folder, imagetable.references(order, copied))


def build(names: list[str], progress: Progress) -> dict[str, str]:
    """Build what buildah's store lacks of these and of all that they are based on, side by side where it can be.

    Returns the local reference of each of `names`.
    """
    here = cache()
    requirements.install_packages(_PACKAGES, progress)
    requirements.require_root("building images")
    buildah = Buildah(here)
    with alone_if_free(here.store_lock) as alone:
        if alone:
            buildah.clear()
    with together(here.store_lock, progress), _snapshot(names) as snapshot:
        known, held = snapshot.references, set(buildah.references())
        lacking = [name for name in known if name != PAUSE and known[name] not in held]
        if lacking:
            gib = sum(_GIB.get(name, 1.0) for name in lacking)
            requirements.require_disk(here.root, gib, f"building {', '.join(lacking)}")
            _build_all(lacking, snapshot, progress)
        return {name: known[name] for name in names}


def _build_all(lacking: list[str], snapshot: Snapshot, progress: Progress) -> None:
    """Build in order, two at once; each waits for its own bases, which were begun before it."""
    begun: dict[str, Future[None]] = {}

    def work(name: str) -> None:
        for base in imagetable.IMAGES[name].bases.values() if name != BASE else ():
            if base in begun:
                begun[base].result()
        _build(name, snapshot, progress)

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for name in lacking:
            begun[name] = pool.submit(work, name)
    for future in begun.values():
        future.result()


def _build(name: str, snapshot: Snapshot, progress: Progress) -> None:
    """Build one image, unless another process built it while this one waited; forget the oldest ones."""
    here, reference = cache(), snapshot.references[name]
    buildah = Buildah(here)
    with exclusively(here.image_lock(name), progress):
        if reference in buildah.references():
            return
        with progress.step(f"build {reference}", announce=True):
            if name == BASE:
                buildah.build_base(reference)
            else:
                image = imagetable.image(name)
                bases = {argument: snapshot.references[base] for argument, base in image.bases.items()}
                buildah.build(image, reference, {**image.arguments, **bases}, snapshot.folder / name)
        buildah.delete(outdated(name, buildah.references(), reference))


def outdated(name: str, newest_first: Sequence[str], current: str) -> list[str]:
    """References of the same image beyond the ones that are kept; never the current one.

    Of the one that holds torch no other is kept, nor what was built on it: each is five gigabytes.
    """
    own = _tags_of(name, newest_first, current)
    if name != _LARGE:
        return own[_KEPT - 1 :]
    users = [image.name for image in imagetable.IMAGES.values() if name in image.bases.values()]
    return own + [reference for user in users for reference in _tags_of(user, newest_first, current)]


def _tags_of(name: str, references: Sequence[str], current: str) -> list[str]:
    return [ref for ref in references if ref.startswith(f"{imagetable.PREFIX}/{name}:") and ref != current]


def _import(name: str, reference: str, runtime: Runtime, progress: Progress) -> None:
    here = cache()
    if name == PAUSE:
        pause.provide(here)
        return
    buildah = Buildah(here)
    with exclusively(here.image_lock(name), progress), together(here.store_lock, progress):
        if reference in runtime.images():
            return
        with progress.step(f"import {reference}"):
            transfer.import_image(buildah, runtime, reference, here.root / "contexts" / f"transfer-{name}")
            runtime.discard_layers(reference)
            runtime.delete_images(_forgotten(name, runtime.images(), buildah.references()))


def _push(reference: str, registry: str, progress: Progress) -> str:
    target = f"{registry.rstrip('/')}/{reference.rsplit('/', 1)[-1]}"
    with progress.step(f"push {target}"):
        Buildah(cache()).push(reference, target)
    return target


def _forgotten(name: str, held: Iterable[str], built: Iterable[str]) -> list[str]:
    """References of the image that containerd holds though the store of builds has dropped them."""
    return sorted(ref for ref in set(held) - set(built) if ref.startswith(f"{imagetable.PREFIX}/{name}:"))
