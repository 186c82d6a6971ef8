"""Layers that buildah has unpacked become containerd's snapshots by hard links: no copy, no minute per gigabyte.

Both keep a layer as a folder of files in overlayfs's own form and never change it, and both stores lie in one cache
folder. What cannot be taken over this way is moved by `transfer` as bytes.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.runtime import Runtime
from tuneloop_localcluster.shell import run

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """One unpacked layer of buildah's store."""

    diff_id: str
    folder: Path


def stored_layers(store: Path, reference: str) -> list[Layer]:
    """An image's layers in buildah's store, the lowest first; empty if the store is not as this code knows it."""
    try:
        images = json.loads((store / "overlay-images" / "images.json").read_text())
        layers = json.loads((store / "overlay-layers" / "layers.json").read_text())
        chain = _chain(reference, images, layers)
    except (OSError, ValueError, KeyError) as error:
        _LOG.info("layers of %s are copied, since %s reads otherwise: %r", reference, store, error)
        return []
    return [Layer(layer["diff-digest"], store / "overlay" / layer["id"] / "diff") for layer in chain]


def _chain(reference: str, images: list[dict[str, Any]], layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_id = {layer["id"]: layer for layer in layers}
    name = next((image["layer"] for image in images if reference in (image.get("names") or [])), None)
    chain: list[dict[str, Any]] = []
    while name:
        chain.append(by_id[name])
        name = by_id[name].get("parent")
    return chain[::-1]


def adopt(runtime: Runtime, layers: Sequence[Layer], chain_ids: Sequence[str]) -> list[str]:
    """Make snapshots of the layers that containerd lacks; returns the names of the new ones.

    They are protected from collection until `Runtime.release` is called on them, which is when an image holds them.
    """
    held, parent = runtime.snapshots(), ""
    made: list[str] = []
    for layer, chain_id in zip(layers, chain_ids, strict=True):
        if chain_id not in held:
            target = runtime.prepare_snapshot(_key(chain_id), parent)
            try:
                run(["cp", "--archive", "--link", f"{layer.folder}/.", target])
            except ClusterError as error:
                _LOG.info("layer %s is copied, since it cannot be linked: %s", layer.diff_id, error)
                runtime.drop_snapshot(_key(chain_id))
                return made
            runtime.commit_snapshot(chain_id, _key(chain_id))
            made.append(chain_id)
        parent = chain_id
    return made


def _key(chain_id: str) -> str:
    return f"tuneloop-{chain_id}"
