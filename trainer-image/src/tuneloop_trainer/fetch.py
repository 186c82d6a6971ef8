"""Stage fetch: bring model and dataset into the store, under names that say exactly what they are.

The only stage with tokens and a way out of the cluster. Nothing that was downloaded is run or loaded here. A model is
kept by repository and commit and shared by the namespace; a dataset by the digest of its files.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop_core.adapterconfig import AdapterFetchResult
from tuneloop_core.api.shape import ModelShape
from tuneloop_core.api.sources import DatasetSource, ModelSource
from tuneloop_core.constants import STORE_DATASETS, STORE_MODELS
from tuneloop_core.plan.config import read_shape
from tuneloop_core.stages import FetchInput, FetchResult, Reason
from tuneloop_core.uris import OCIReference, S3Object, parse_model_uri

from tuneloop_trainer.adapterfetch import fetch_adapter
from tuneloop_trainer.arrival import reporting, require_allowed, require_room
from tuneloop_trainer.claims import Claim, open_claim
from tuneloop_trainer.datasetfetch import fetch_dataset
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
from tuneloop_trainer.guard import AddressGuard, cluster_guard
from tuneloop_trainer.hub import Hub, check_config, is_wanted
from tuneloop_trainer.lmeval.sources import fetch_tasks, tasks_hold
from tuneloop_trainer.ocifiles import ArtifactSource, model_files
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.room import Room, mark_used
from tuneloop_trainer.rowfiles import Access
from tuneloop_trainer.s3models import S3Model

log = logging.getLogger("tuneloop")

STALE_SECONDS = 24 * 3600


def run(stage_input: FetchInput, paths: Paths, guard: AddressGuard | None = None) -> FetchResult | AdapterFetchResult:
    """Fetch the rows of evaluation tasks, the model, then the dataset if there is one; or an adapter alone."""
    guard = guard or cluster_guard(stage_input.refused_addresses)
    if stage_input.adapter is not None:
        _remove_stale(paths.artifacts)
        return fetch_adapter(stage_input, paths, guard)
    room = Room(paths, stage_input.store)
    room.sweep()
    return room.make(lambda: _fetch(stage_input, paths, guard))


def _fetch(stage_input: FetchInput, paths: Paths, guard: AddressGuard) -> FetchResult:
    _remove_stale(paths.models, paths.datasets)
    fetch_tasks(stage_input, paths, guard)
    result = _fetch_model(stage_input, ModelSource.model_validate(stage_input.model), paths, guard)
    if stage_input.dataset is None:
        return result
    dataset = DatasetSource.model_validate(stage_input.dataset)
    folder, cached = fetch_dataset(dataset, Access(stage_input, paths, guard))
    mark_used(folder)
    return result.model_copy(
        update={
            "dataset_path": f"{STORE_DATASETS}/{folder.name}",
            "dataset_digest": sealed_digest(folder),
            "dataset_bytes": folder_bytes(folder),
            "cached": result.cached and cached,
        }
    )


def holds(earlier: dict[str, Any], paths: Paths) -> bool:
    """Whether what an earlier run fetched still lies in the store (models are a cache)."""
    if "facts" in earlier:
        adapter = AdapterFetchResult.model_validate(earlier)
        return sealed_digest(paths.artifacts.parent / adapter.path) == adapter.digest
    result = FetchResult.model_validate(earlier)
    folders = [paths.models.parent / result.model_path]
    if result.dataset_path:
        folders.append(paths.datasets.parent / result.dataset_path)
    return all(sealed_digest(folder) for folder in folders) and tasks_hold(paths)


# ---- models --------------------------------------------------------------------------------------------------------


def _fetch_model(stage_input: FetchInput, model: ModelSource, paths: Paths, guard: AddressGuard) -> FetchResult:
    if model.uri.startswith("hf://"):
        hub = Hub(stage_input.hub_endpoint, paths.secret("model", "token"), guard)
        return _hub_model(hub, model, paths, stage_input.max_bytes)
    if model.uri.startswith("pvc://"):
        return _claim_model(open_claim(paths, stage_input.pvc_model_path, model.uri, "model"), paths)
    place = parse_model_uri(model.uri)
    if isinstance(place, S3Object):
        keys = Access(stage_input, paths, guard).s3_keys("model")
        return _s3_model(S3Model(model, keys, guard), model, paths, stage_input.max_bytes)
    if isinstance(place, OCIReference):
        login = RegistryLogin(paths.secret("model", "username"), paths.secret("model", "token"))
        registry = ArtifactSource(model.uri, model.endpoint, login, guard, "model")
        return _registry_model(registry, paths, stage_input.max_bytes)
    raise TypeError(f"no model comes from {place}")


def _hub_model(hub: Hub, model: ModelSource, paths: Paths, max_bytes: int) -> FetchResult:
    name = model.uri.removeprefix("hf://")
    repository = hub.resolve_model(name, model.revision)
    uri = f"hf://{name}@{repository.commit}"
    log.info("%s at %s is commit %s, %s", model.uri, model.revision, repository.commit, gib(repository.bytes))
    target = paths.models / "hf" / name.replace("/", "--") / repository.commit
    cached = bool(sealed_digest(target))
    if not cached:
        wanted = _Wanted(model.uri, repository.bytes, lambda folder: hub.download(repository, folder))
        _bring(wanted, target, max_bytes)
    return _model_result(uri, target, paths, repository.commit, cached)


def _s3_model(source: S3Model, model: ModelSource, paths: Paths, max_bytes: int) -> FetchResult:
    listed = source.listing()
    target = paths.models / "s3" / source.version(listed)
    cached = bool(sealed_digest(target))
    if not cached:
        size = sum(each.size for each in listed)
        _bring(_Wanted(model.uri, size, lambda folder: source.download(listed, folder)), target, max_bytes)
    digest = sealed_digest(target)
    return _model_result(f"{model.uri.rstrip('/')}@{digest}", target, paths, digest, cached)


def _registry_model(source: ArtifactSource, paths: Paths, max_bytes: int) -> FetchResult:
    """Kept under the manifest's digest, which names its files' bytes wherever it lies."""
    artifact = source.resolve()
    files = model_files(artifact)
    target = paths.models / "oci" / artifact.digest.removeprefix("sha256:")
    cached = bool(sealed_digest(target))
    if not cached:

        def download(folder: Path) -> None:
            for name, blob in files.items():
                log.info("fetching %s (%s)", name, gib(blob.size))
                source.get(blob, folder / name)

        _bring(_Wanted(artifact.uri, sum(blob.size for blob in files.values()), download), target, max_bytes)
    return _model_result(artifact.uri, target, paths, artifact.digest, cached)


def _claim_model(claim: Claim, paths: Paths) -> FetchResult:
    if not claim.place.is_dir():
        raise StageError(Reason.MODEL_NOT_FOUND, f"{claim.uri}: there is no such folder in the claim.")
    files = claim.files(path for path in sorted(claim.place.iterdir()) if is_wanted(path.name))
    if not any(path.suffix == ".safetensors" for path in files):
        raise StageError(Reason.MODEL_UNSUPPORTED, f"{claim.uri} has no .safetensors weights at its root.")
    check_config(claim.place, claim.uri)
    folder, cached = _copy_sealed(claim, files, paths.models / "pvc")
    digest = sealed_digest(folder)
    return _model_result(f"{claim.uri}@{digest}", folder, paths, digest, cached)


def _model_result(uri: str, folder: Path, paths: Paths, commit: str, cached: bool) -> FetchResult:
    log.info("%s is in the store%s", uri, " already" if cached else "")
    mark_used(folder)
    path = f"{STORE_MODELS}/{folder.relative_to(paths.models).as_posix()}"
    return FetchResult(
        model_uri=uri,
        model_path=path,
        model_commit=commit,
        model_bytes=folder_bytes(folder),
        cached=cached,
        shape=model_shape(folder),
    )


def model_shape(folder: Path) -> ModelShape | None:
    """The sizes that config.json tells, for the operator's plan; None where it tells none."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return read_shape(config) if isinstance(config, dict) else None


# ---- shared --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """A model to download: its size in bytes, and what puts its files into a folder."""

    uri: str
    size: int
    download: Callable[[Path], None]


def _bring(wanted: _Wanted, target: Path, max_bytes: int) -> None:
    """Put a model into the store, unless it is larger than the installation allows or the store has room for."""
    require_allowed(Reason.MODEL_UNSUPPORTED, wanted.size, max_bytes, wanted.uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    require_room(target.parent, wanted.size, wanted.uri)
    uri = wanted.uri
    with folder_aside(target.parent) as aside, reporting(aside, uri), store_full_told(aside, uri):
        wanted.download(aside)
        check_config(aside, uri)
        seal(aside, target)


def _copy_sealed(claim: Claim, files: list[Path], parent: Path) -> tuple[Path, bool]:
    """Copy files of a claim's place into a folder below ``parent``, named by its digest, and whether it was there."""
    with folder_aside(parent) as aside, reporting(aside, claim.uri), store_full_told(aside, claim.uri):
        for path in files:
            claim.copy(path, aside / path.relative_to(claim.place))
        target = parent / folder_digest(aside).removeprefix("sha256:")
        cached = bool(sealed_digest(target))
        seal(aside, target)
        return target, cached


def _remove_stale(*folders: Path) -> None:
    """Remove what fetches that died a day ago left aside."""
    for folder in folders:
        for path in folder.glob("**/.aside-*"):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
