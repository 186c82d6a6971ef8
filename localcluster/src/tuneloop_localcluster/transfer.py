"""From buildah's store into containerd, moving only what containerd lacks and cannot adopt.

Two images share five gigabytes of torch, and a changed line of code changes a layer of kilobytes. buildah skips blobs
that an OCI layout already holds, so the layout gets empty stand-ins for the layers that containerd has; they are left
out of the archive, and containerd never asks for the blob of a layer whose snapshot is there.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from tuneloop_localcluster.adoption import adopt, stored_layers
from tuneloop_localcluster.buildah import Buildah
from tuneloop_localcluster.runtime import Runtime

_NAME = "io.containerd.image.name"


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The name of each layer's snapshot: a digest over it and all below it (OCI image spec, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        joined = f"{chain[-1]} {diff_id}" if chain else diff_id
        chain.append(f"sha256:{hashlib.sha256(joined.encode()).hexdigest()}" if chain else diff_id)
    return chain


def held_layers(diff_ids: Sequence[str], snapshots: Iterable[str]) -> list[str]:
    """The layers whose snapshots containerd has; a layer above a missing one is missing too."""
    have = set(snapshots)
    return [diff_id for diff_id, chain_id in zip(diff_ids, chain_ids(diff_ids), strict=True) if chain_id in have]


def import_image(buildah: Buildah, runtime: Runtime, reference: str, folder: Path) -> None:
    """Import one image; `folder` is used for what moves as bytes and is gone afterwards."""
    diff_ids = buildah.layers(reference)
    stored = stored_layers(buildah.store, reference)
    same = [layer.diff_id for layer in stored] == diff_ids
    adopted = adopt(runtime, stored, chain_ids(diff_ids)) if same else []
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _export(buildah, runtime, reference, folder)
        runtime.import_image(reference, lambda out: pack(folder, out))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        runtime.release(adopted)


def _export(buildah: Buildah, runtime: Runtime, reference: str, folder: Path) -> None:
    """Write the image as an OCI layout without the layers that containerd holds."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    held = [
        blobs / name.removeprefix("sha256:") for name in held_layers(buildah.layers(reference), runtime.snapshots())
    ]
    for stand_in in held:
        stand_in.touch()
    buildah.export(reference, folder)
    for stand_in in held:
        stand_in.unlink(missing_ok=True)
    name_image(folder / "index.json", reference)


def name_image(index: Path, reference: str) -> None:
    """Write the name under which containerd files the one image of a layout."""
    content = json.loads(index.read_text())
    for manifest in content["manifests"]:
        manifest["annotations"] = {_NAME: reference}
    index.write_text(json.dumps(content))


def pack(folder: Path, out: IO[bytes]) -> None:
    """Write the layout as a tar stream; each file is deleted once it is sent, so that no layer is there thrice."""
    with tarfile.open(fileobj=out, mode="w|") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.add(path, arcname=str(path.relative_to(folder)))
                path.unlink()
