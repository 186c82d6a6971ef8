"""Images of the checkout as the cluster wants them: built if they are not, and imported into containerd or pushed.

refs = images.ensure(["operator", "trainer"])   # {"operator": "localhost/tuneloop/operator:<tag>", ...}
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuneloop_localcluster import contexts, imagetable, pause, requirements, transfer
from tuneloop_localcluster.buildah import Buildah
from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.imagetable import BASE, PAUSE, Image
from tuneloop_localcluster.locks import alone_if_free, exclusively, together
from tuneloop_localcluster.paths import cache, repository
from tuneloop_localcluster.progress import Progress
from tuneloop_localcluster.runtime import Runtime

# Tags of one image that are kept: a cluster may still run the last ones.
_KEPT = 3
_LARGE = "torch-base"
# Two builds at once: one downloads while the other unpacks or compiles.
_SIDE_BY_SIDE = 2
# Seen at the peak of each build, in GiB: what is downloaded, unpacked and committed.
_GIB = {BASE: 1.0, "torch-base": 12.0, "trainer": 2.0, "server": 5.0}
_PACKAGES = ("buildah", "debootstrap", "git", "ca-certificates")


@dataclass(frozen=True)
class Snapshot:
    """The checkout as it was at one moment: a folder with each image's context, and what follows from it."""

    folder: Path
    images: dict[str, Image]
    references: dict[str, str]


def ensure(
    names: Iterable[str],
    *,
    registry: str = "",
    arguments: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Build what is not built and hand it to the cluster; returns the reference of each name.

    Without `registry` the local cluster's containerd gets them (it must be up). With `registry` (HOST/PREFIX) they
    are pushed there and the references name it. `arguments` are build arguments, given to the images that declare
    them. What is there already costs nothing.
    """
    wanted, arguments, progress = list(dict.fromkeys(names)), arguments or {}, progress or Progress()
    if registry:
        built = build(wanted, progress, arguments)
        return {name: _push(built[name], registry, progress) for name in wanted if name != PAUSE}
    known = references(wanted, arguments)
    runtime = Runtime(cache().full)
    if not runtime.answers():
        raise ClusterError("the local cluster is not up: run `localcluster up` first, or give --registry HOST/PREFIX")
    held = runtime.images()
    lacking = [name for name in wanted if known[name] not in held]
    if lacking:
        known |= build(lacking, progress, arguments)
    for name in lacking:
        _import(name, known[name], runtime, progress)
    return {name: known[name] for name in wanted}


def references(names: Iterable[str], arguments: Mapping[str, str] | None = None) -> dict[str, str]:
    """The local references of these images and of all that they are based on, from the checkout as it is now."""
    here, order = repository(), imagetable.in_build_order(names)
    plain = [imagetable.image(name) for name in order if name in imagetable.IMAGES]
    read = {image.name: contexts.contents(here, contexts.files(here, image)) for image in plain}
    return imagetable.references(_configured(plain, arguments or {}, read), order, read)


def _configured(
    plain: Iterable[Image], arguments: Mapping[str, str], read: Mapping[str, Mapping[str, bytes]]
) -> dict[str, Image]:
    """These images by name, with the build arguments that concern each."""
    return {i.name: imagetable.configured(i, arguments, read[i.name][i.dockerfile][1:].decode()) for i in plain}


@contextmanager
def _snapshot(names: Iterable[str], arguments: Mapping[str, str]) -> Iterator[Snapshot]:
    """Copy the contexts aside, so that what is built is what the tags say even if the checkout changes meanwhile."""
    order = imagetable.in_build_order(names)
    parent = cache().root / "contexts"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as made:
        folder = Path(made)
        plain = [imagetable.image(name) for name in order if name in imagetable.IMAGES]
        copied = {image.name: contexts.stage(repository(), image, folder / image.name) for image in plain}
        images = _configured(plain, arguments, copied)
        yield Snapshot(folder, images, imagetable.references(images, order, copied))


def build(names: list[str], progress: Progress, arguments: Mapping[str, str] | None = None) -> dict[str, str]:
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
    with together(here.store_lock, progress), _snapshot(names, arguments or {}) as snapshot:
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
                image = snapshot.images[name]
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
