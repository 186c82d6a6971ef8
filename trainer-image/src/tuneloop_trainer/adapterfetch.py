"""Fetch of an adapter made elsewhere into the namespace's artifacts, for a ModelDeployment.

Its config is read first: what no engine can load is refused before its weights are downloaded. Two files are kept,
under the digest of what they hold, so that the same adapter from two places is one version. Nothing is loaded here.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from tuneloop_core.adapterconfig import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterFacts,
    AdapterFetchResult,
    kind_faults,
    read_facts,
)
from tuneloop_core.api.modeldeployment import AdapterSource
from tuneloop_core.constants import STORE_ARTIFACTS
from tuneloop_core.stages import FetchInput, Reason
from tuneloop_core.uris import ClaimPath, HubModel, OCIReference, S3Object, parse_model_uri

from tuneloop_trainer.claims import Claim, open_claim
from tuneloop_trainer.download import About, Downloader, S3Credentials
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.exports.registry import RegistryLogin
from tuneloop_trainer.files import (
    folder_aside,
    folder_bytes,
    folder_digest,
    gib,
    seal,
    sealed_digest,
    store_full_told,
)
from tuneloop_trainer.finite import not_finite
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.hub import Hub
from tuneloop_trainer.ocifiles import ArtifactSource
from tuneloop_trainer.paths import Paths

log = logging.getLogger("tuneloop")

CONFIG_LIMIT = 1 << 20  # bytes; PEFT writes about one KiB
FIELD = "adapters[].from"
ABOUT = About(missing=Reason.MODEL_NOT_FOUND, unfit=Reason.ADAPTER_UNSUPPORTED, field=f"{FIELD}.uri")

Get = Callable[[str, Path], None]
"""Puts one file of the adapter into a folder, under its own name. Raises StageError."""


def fetch_adapter(stage_input: FetchInput, paths: Paths, guard: AddressGuard) -> AdapterFetchResult:
    """Bring the adapter of ``stage_input.adapter`` into the store; its config first."""
    source = AdapterSource.model_validate(stage_input.adapter)
    uri, get = _open(source, stage_input, paths, guard)
    with folder_aside(paths.artifacts) as aside, store_full_told(aside, uri):
        get(CONFIG_FILE, aside)
        facts = _checked(aside / CONFIG_FILE, uri)
        get(WEIGHTS_FILE, aside)
        _require_numbers(aside / WEIGHTS_FILE, uri)
        target = paths.artifacts / folder_digest(aside).removeprefix("sha256:")
        cached = bool(sealed_digest(target))
        digest = seal(aside, target)
    log.info("adapter %s is in the store as %s", uri, digest)
    path = f"{STORE_ARTIFACTS}/{target.name}"
    return AdapterFetchResult(uri=uri, path=path, digest=digest, bytes=folder_bytes(target), cached=cached, facts=facts)


def _open(source: AdapterSource, stage_input: FetchInput, paths: Paths, guard: AddressGuard) -> tuple[str, Get]:
    """The resolved URI, and how to get its files."""
    uri, limit = source.uri or "", stage_input.max_bytes

    def secret(key: str) -> str:
        return paths.secret("adapter", key)

    match parse_model_uri(uri):
        case HubModel(repo):
            hub = Hub(stage_input.hub_endpoint, secret("token"), guard)
            return _hub(hub, repo, source.revision or "main", limit)
        case S3Object():
            credentials = S3Credentials(secret("accessKeyId"), secret("secretAccessKey"), secret("sessionToken"))
            return uri, _s3(Downloader(guard, limit, about=ABOUT), uri, source.endpoint, credentials)
        case ClaimPath():
            return uri, _claim(open_claim(paths, stage_input.pvc_adapter_path, uri, "adapter"))
        case OCIReference():
            login = RegistryLogin(secret("username"), secret("token"))
            return _registry(ArtifactSource(uri, source.endpoint, login, guard, FIELD), limit)
        case other:
            raise TypeError(f"no adapter comes from {other}")


def _hub(hub: Hub, name: str, revision: str, limit: int) -> tuple[str, Get]:
    found = hub.resolve_files(name, revision, (CONFIG_FILE, WEIGHTS_FILE))
    uri = f"hf://{name}@{found.commit}"
    if limit and found.bytes > limit:
        raise _too_large(uri, found.bytes, limit)

    def get(file: str, folder: Path) -> None:
        if file not in found.files:
            raise _missing(uri, file)
        hub.download(replace(found, files={file: found.files[file]}), folder)

    return uri, get


def _s3(downloader: Downloader, uri: str, endpoint: str, credentials: S3Credentials) -> Get:
    def get(file: str, folder: Path) -> None:
        downloader.s3_object(f"{uri.rstrip('/')}/{file}", endpoint, credentials, folder / file)

    return get


def _claim(claim: Claim) -> Get:
    if not claim.place.is_dir():
        raise StageError(Reason.MODEL_NOT_FOUND, f"{claim.uri}: there is no such folder in the claim.")

    def get(file: str, folder: Path) -> None:
        if not claim.files([claim.place / file]):
            raise _missing(claim.uri, file)
        claim.copy(claim.place / file, folder / file)

    return get


def _registry(registry: ArtifactSource, limit: int) -> tuple[str, Get]:
    """One layer a file, by its title: what our export and ``oras push`` write."""
    artifact = registry.resolve()
    size = sum(artifact.files[file].size for file in (CONFIG_FILE, WEIGHTS_FILE) if file in artifact.files)
    if size > limit > 0:
        raise _too_large(artifact.uri, size, limit)

    def get(file: str, folder: Path) -> None:
        if file not in artifact.files:
            raise _missing(artifact.uri, file)
        registry.get(artifact.files[file], folder / file)

    return artifact.uri, get


def _checked(path: Path, uri: str) -> AdapterFacts:
    """The facts of a config that an engine can load."""
    if path.stat().st_size > CONFIG_LIMIT:
        raise StageError(Reason.ADAPTER_UNSUPPORTED, f"{uri}: its {CONFIG_FILE} has {gib(path.stat().st_size)}.")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise StageError(Reason.ADAPTER_UNSUPPORTED, f"{uri}: its {CONFIG_FILE} is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise StageError(Reason.ADAPTER_UNSUPPORTED, f"{uri}: its {CONFIG_FILE} holds no JSON object.")
    if faults := list(kind_faults(config)):
        raise StageError(Reason.ADAPTER_UNSUPPORTED, f"{uri} cannot be served as an adapter: {'; '.join(faults)}.")
    return read_facts(config)


def _require_numbers(path: Path, uri: str) -> None:
    """An engine answers 200 with an adapter that computes nothing: no canary would find it by its errors."""
    try:
        broken, count = not_finite(path)
    except SafetensorError as error:
        raise StageError(Reason.ADAPTER_UNSUPPORTED, f"{uri}: its {WEIGHTS_FILE} cannot be read ({error}).") from error
    if broken:
        message = (
            f"{uri}: {len(broken)} of the {count} tensors of its {WEIGHTS_FILE} hold NaN or infinity, {broken[0]} "
            "first: its training diverged. Train it again with a lower learning rate."
        )
        raise StageError(Reason.ADAPTER_UNSUPPORTED, message)


def _missing(uri: str, file: str) -> StageError:
    words = f"{uri} has no {file}: an adapter is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT saves it"
    return StageError(Reason.ADAPTER_UNSUPPORTED, f"{words}. A whole model is served by model.uri.")


def _too_large(uri: str, size: int, limit: int) -> StageError:
    message = f"{uri} has {gib(size)}; hub.maxBytes of this installation allows {gib(limit)}."
    return StageError(Reason.ADAPTER_UNSUPPORTED, message)
