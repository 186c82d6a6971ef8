"""``oci://`` read: the files of one artifact in a registry, for models and adapters.

A tag is resolved to the manifest's digest once, and files are asked for by digest: nothing changes in between. Reads
what our export and ``oras push`` write (one layer a file, by title) and the raw layers of ModelPack. Never unpacks an
archive, so no container image, and never loads what it brings.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from tuneloop_core.stages import Reason
from tuneloop_core.uris import OCIReference, parse_model_uri

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.exports.failures import ExportError
from tuneloop_trainer.exports.oci import TITLE
from tuneloop_trainer.exports.registry import Registry, RegistryLogin
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.hub import is_wanted

UNPACK = "io.deis.oras.content.unpack"  # a folder that oras packed
FILE_PATH = "org.cncf.model.filepath"  # ModelPack; the layer is the file itself where its media type says raw


@dataclass(frozen=True)
class Blob:
    """One file as the registry keeps it; its size in bytes."""

    digest: str
    size: int


@dataclass(frozen=True)
class Artifact:
    """One manifest: its URI with the digest, the digest, its files by name, and how many layers are no files."""

    uri: str
    digest: str
    files: dict[str, Blob]
    others: int = 0


class ArtifactSource:
    """One ``oci://`` URI with its login; ``field`` is the block of the spec that names it, for words."""

    def __init__(self, uri: str, endpoint: str, login: RegistryLogin, guard: AddressGuard, field: str) -> None:
        place = parse_model_uri(uri)
        if not isinstance(place, OCIReference):
            raise TypeError(f"{uri} is in no registry")
        self._uri, self._reference, self._field = uri, place.digest or place.tag or "latest", field
        base = endpoint.rstrip("/") or f"https://{place.registry}"
        self._registry = Registry(base, place.repository, login, guard, actions="pull")

    def resolve(self) -> Artifact:
        """What the tag or digest means now; raises ``StageError``."""
        with self._refusals():
            digest, document = self._registry.manifest(self._reference)
        try:
            return read_manifest(f"{self._uri.partition('@')[0]}@{digest}", digest, document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            words = f"{self._uri} names no artifact with layers ({type(error).__name__}: {error})"
            change = "name the manifest of one artifact, as oras push writes it, not an index of several"
            raise StageError(Reason.MODEL_UNSUPPORTED, f"{words}: {change}.") from error

    def get(self, blob: Blob, target: Path) -> None:
        """Stream one file to its place, digest and size checked; raises ``StageError``."""
        with self._refusals():
            self._registry.pull_blob(blob.digest, blob.size, target)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What the registry refused, as a reason."""
        try:
            yield
        except ExportError as error:
            raise self._refusal(error) from error
        except httpx2.TransportError as error:
            words = f"{self._uri} did not answer ({type(error).__name__}: {error}); it will be tried again."
            raise StageError(Reason.HUB_UNAVAILABLE, words) from error

    def _refusal(self, error: ExportError) -> StageError:
        if error.transient:
            return StageError(Reason.HUB_UNAVAILABLE, f"{self._uri}: {error.said}; it will be tried again.")
        if error.status in (401, 403):
            words = f"check the keys 'token' and 'username' of the Secret in {self._field}.credentialsSecret"
            return StageError(Reason.ACCESS_DENIED, f"{self._uri}: {error.said}: {words}.")
        return StageError(Reason.MODEL_NOT_FOUND, f"{self._uri}: {error.said}. Check {self._field}.uri.")


def read_manifest(uri: str, digest: str, document: dict[str, Any]) -> Artifact:
    """The files of a manifest; raises KeyError, TypeError, ValueError or AttributeError where it is none."""
    layers = document["layers"]
    named = {name: _blob(layer) for layer in layers if (name := file_name(layer))}
    return Artifact(uri, digest, named, len(layers) - len(named))


def file_name(layer: dict[str, Any]) -> str:
    """The path of the file that a layer is; empty for an archive or what has no name."""
    notes = layer.get("annotations") or {}
    if TITLE in notes:
        return "" if notes.get(UNPACK) == "true" else str(notes[TITLE])
    return str(notes.get(FILE_PATH, "")) if str(layer.get("mediaType", "")).endswith(".raw") else ""


def _blob(layer: dict[str, Any]) -> Blob:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", layer["digest"]):
        raise ValueError(f"a layer has the digest {layer['digest']}")
    return Blob(layer["digest"], int(layer["size"]))


def model_files(artifact: Artifact) -> dict[str, Blob]:
    """The files at an artifact's root that a text model needs; raises ``StageError`` where it is no model."""
    files = {name: blob for name, blob in artifact.files.items() if is_wanted(name)}
    if any(name.endswith(".safetensors") for name in files):
        return files
    found = f"{artifact.uri} has no .safetensors weights by title at its root (it has {_seen(artifact)})"
    raise StageError(Reason.MODEL_UNSUPPORTED, f"{found}. {_change(artifact)}")


def _seen(artifact: Artifact) -> str:
    names = sorted(artifact.files)[:5]
    layers = [f"{artifact.others} layers that are archives or have no title"] if artifact.others else []
    return ", ".join(names + layers) or "no layers"


def _change(artifact: Artifact) -> str:
    if "adapter_config.json" in artifact.files:
        return "It is an adapter: a ModelDeployment serves it by adapters[].from.uri, over its base as model.uri."
    return (
        "Push the model's files each as a layer of its own, such as by oras push in the model's folder; convert "
        "pickled weights, which can run code when loaded, to safetensors."
    )
