"""Fetch of a dataset into the store, named by the digest of its files: those to train on, and those to hold out.

Where ``dataset.validation`` names files, each side lies in a folder of its own (``data.files.find_sides``), so that the
digest covers both and no later stage has to match names again. Without, names tell the sides, as on the hub.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tuneloop_core.api.sources import DatasetSource
from tuneloop_core.data.files import READ, TRAIN, VALIDATION, held_out_files, training_files, untrained, wanted_files
from tuneloop_core.stages import Reason
from tuneloop_core.uris import shown

from tuneloop_trainer.arrival import reporting
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import folder_aside, folder_digest, seal, sealed_digest, store_full_told
from tuneloop_trainer.rowfiles import Access, Address, RowFiles, open_rows

log = logging.getLogger("tuneloop")


def fetch_dataset(dataset: DatasetSource, access: Access) -> tuple[Path, bool]:
    """The dataset's folder in the store, and whether it was there; raises ``StageError``, for another digest too."""
    parent, uri = access.paths.datasets, shown(dataset.uri)
    with folder_aside(parent) as aside, reporting(aside, uri), store_full_told(aside, uri):
        if dataset.validation.named:
            _bring_sides(dataset, access, aside)
        else:
            rows = _open_dataset(dataset, access)
            rows.bring(_chosen(rows, dataset.files or ()), aside, access.max_bytes)
        target = parent / folder_digest(aside).removeprefix("sha256:")
        cached = bool(sealed_digest(target))
        seal(aside, target)
    _require_digest(dataset, sealed_digest(target))
    return target, cached


def _bring_sides(dataset: DatasetSource, access: Access, aside: Path) -> None:
    rows, split = _open_dataset(dataset, access), dataset.validation
    apart = _open_validation(dataset, access) if split.uri else None
    if apart is None and rows.single:
        words = f"{rows.uri} is one file: validation.files are chosen from a folder. Name its folder in dataset.uri"
        raise StageError(Reason.DATASET_INVALID, f"{words} and the file in dataset.files, or a validation.uri.")
    there = apart or replace(rows, field="dataset.validation.uri")  # whose files field chooses fewer of them
    held_out = _held_out(there, split.files or ())
    train = _train(rows, dataset.files or (), () if apart else held_out)
    log.info("%d files to train on, %d held out", len(train), len(held_out))
    rows.bring(train, aside / TRAIN, access.max_bytes)
    there.bring(held_out, aside / VALIDATION, access.max_bytes)


def _open_dataset(dataset: DatasetSource, access: Access) -> RowFiles:
    mount = access.stage_input.pvc_dataset_path
    return open_rows(Address(dataset.uri, dataset.endpoint, "dataset", "dataset.uri", mount), access)


def _open_validation(dataset: DatasetSource, access: Access) -> RowFiles:
    split, mount = dataset.validation, access.stage_input.pvc_validation_path
    field = "dataset.validation.uri"
    return open_rows(Address(split.uri or "", split.endpoint, "validation", field, mount), access)


def _chosen(rows: RowFiles, patterns: Sequence[str]) -> list[str]:
    if rows.single or (rows.whole and not patterns):
        return list(rows.sizes)
    found = wanted_files(rows.sizes, patterns) or _none(rows, patterns, "dataset.files")
    if words := untrained([rows.above + name for name in found], named=bool(patterns)):  # as check will see them
        raise StageError(Reason.DATASET_INVALID, f"{rows.uri}: {words}.")
    return found


def _held_out(rows: RowFiles, patterns: Sequence[str]) -> list[str]:
    if rows.single:
        return list(rows.sizes)
    return held_out_files(rows.sizes, patterns) or _none(rows, patterns, "dataset.validation.files")


def _train(rows: RowFiles, patterns: Sequence[str], held_out: Sequence[str]) -> list[str]:
    if rows.single:
        return list(rows.sizes)
    found, read = training_files(rows.sizes, patterns, frozenset(held_out)), wanted_files(rows.sizes, patterns)
    if found or not read:
        return found or _none(rows, patterns, "dataset.files")
    if left_out := wanted_files(rows.sizes.keys() - set(held_out), patterns):
        words = f"{rows.uri}: names keep {_few(left_out)} out of training (test, validation)"
        words += f", and dataset.validation.files take {_few(held_out)}" if held_out else ""
        raise StageError(Reason.DATASET_INVALID, f"{words}: name those to train on in dataset.files.")
    words = f"{rows.uri}: each file to train on ({_few(read)}) fits dataset.validation.files too"
    raise StageError(Reason.DATASET_INVALID, f"{words}, so that none is left: hold out fewer, or name others.")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4])


def _none(rows: RowFiles, patterns: Sequence[str], field: str) -> list[str]:
    """Raises: nothing that is read lies there, or nothing of it fits."""
    wanted = f"no file that fits {field} {', '.join(patterns)}" if patterns else "no file that is read"
    reason = Reason.DATASET_NOT_FOUND if patterns else Reason.DATASET_INVALID
    raise StageError(reason, f"{rows.uri} has {wanted} (it has {rows.shown}); what is read is {READ}.")


def _require_digest(dataset: DatasetSource, found: str) -> None:
    if dataset.digest and dataset.digest != found:
        held_out = f" with {shown(dataset.validation.uri)}" if dataset.validation.uri else ""
        message = (
            f"{shown(dataset.uri)}{held_out} has digest {found}, and dataset.digest asks for {dataset.digest}: its "
            "files are others now. Bring them back, or make a new job without digest, or with the new one."
        )
        raise StageError(Reason.DATASET_CHANGED, message)
