"""``oci://REGISTRY/REPOSITORY[:TAG]``: the artifact as an OCI artifact, which ``oras pull`` brings back as files.

One layer a file, named by its title, under one manifest (OCI image spec 1.1, artifactType). Blobs go first, the
manifest last and by its tag: until then nothing can be pulled. Equal blobs are not sent again, and the manifest holds
no time, so the same artifact always has the same digest. Without a tag in the URI the tag is the artifact's short
digest.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tuneloop_core.uris import OCIReference

from tuneloop_trainer.exports.registry import MANIFEST_TYPE, Content, Registry, RegistryLogin
from tuneloop_trainer.files import CHUNK, file_digest, sealed_digest
from tuneloop_trainer.guard import AddressGuard

log = logging.getLogger("tuneloop")

ARTIFACT_TYPE = "application/vnd.tuneloop.artifact.v1"
FILE_TYPE = "application/octet-stream"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
TITLE = "org.opencontainers.image.title"


def export_to_registry(
    artifact: Path, reference: OCIReference, endpoint: str, login: RegistryLogin, guard: AddressGuard
) -> str:
    """Push the artifact; returns ``oci://REGISTRY/REPOSITORY:TAG@DIGEST``, the digest being the manifest's."""
    base = endpoint.rstrip("/") or f"https://{reference.registry}"
    registry = Registry(base, reference.repository, login, guard)
    layers = [_push_file(registry, path, artifact) for path in sorted(artifact.rglob("*")) if path.is_file()]
    registry.put_blob(_digest(EMPTY), len(EMPTY), lambda: iter((EMPTY,)))
    document = manifest(layers, sealed_digest(artifact))
    tag = reference.tag or sealed_digest(artifact).removeprefix("sha256:")[:12]
    registry.put_manifest(tag, MANIFEST_TYPE, document)
    return f"oci://{reference.registry}/{reference.repository}:{tag}@{_digest(document)}"


def manifest(layers: list[dict[str, Any]], artifact_digest: str) -> bytes:
    """The OCI manifest of an artifact; the same layers give the same bytes."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": _digest(EMPTY), "size": len(EMPTY)},
        "layers": layers,
        "annotations": {"dev.tuneloop.artifact.digest": artifact_digest},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _push_file(registry: Registry, path: Path, root: Path) -> dict[str, Any]:
    name, size = path.relative_to(root).as_posix(), path.stat().st_size
    digest = f"sha256:{file_digest(path)}"
    content: Callable[[], Content] = partial(_read, path)
    log.info("%s %s", name, "sent" if registry.put_blob(digest, size, content) else "is there already")
    return {
        "mediaType": FILE_TYPE,
        "digest": digest,
        "size": size,
        "annotations": {TITLE: name},
    }


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while data := stream.read(CHUNK):
            yield data


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
