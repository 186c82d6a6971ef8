"""Checked and tokenized datasets kept in the namespace's store, for the next job on the same data.

An entry is found by everything that its content hangs on: the dataset's digest, the tokenizer's files, the settings,
the versions of what computed it. It is copied into the job's own folder, so that no job ever depends on an entry
staying. Only ever a saving: whatever is wrong with the cache is logged, and the dataset is checked anew.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import time
from dataclasses import asdict
from decimal import Decimal
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tuneloop_core.data
from pydantic import ValidationError
from tuneloop_core.api.finetunejob import Method, Training
from tuneloop_core.api.sources import DatasetSource
from tuneloop_core.stages import CheckInput, CheckResult

from tuneloop_trainer.dataset_report import Report
from tuneloop_trainer.files import DIGEST_FILE, file_digest, folder_aside, folder_bytes, is_whole, seal, sync_folder

log = logging.getLogger("tuneloop")

KEPT = 8  # entries, the most recently used
ROOM = 3  # an entry is kept where this many times its size is free
DATA, REPORT, RESULT = "data", "dataset-report.json", "result.json"
STALE_SECONDS = 24 * 3600
# What reads rows, renders templates and makes tokenizers, some of them from files of other libraries.
LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow", "sentencepiece", "tiktoken", "protobuf")
CODE = ("check", "dataset_report", "encode", "token_cache", "tokenizing", "tokens")  # of this package
# Of a model's files those that no tokenizer is made from; any other may be, by whatever name its class knows it.
NOT_OF_TOKENIZERS = ("*.safetensors", "*.safetensors.index.json", "generation_config.json", "LICENSE*", "README*")


def cache_key(given: CheckInput, model: Path) -> str:
    """The entry's name, hex; empty where the dataset's digest is not known."""
    if not given.dataset_digest:
        return ""
    parts = [given.dataset_digest, _tokenizer(model), _settings(given), _versions(), _code()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class TokenCache:
    """The entries of one namespace."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._entry = folder, folder / key
        self._used = bool(key) and folder.is_dir()

    def restore(self, data: Path) -> tuple[CheckResult, dict[str, Any]] | None:
        """Copy the entry's rows and tokens to ``data``; its result and report, or None where there is no entry."""
        if not self._used or not self._entry.is_dir():
            return None
        try:
            return self._copied(data)
        except (OSError, ValueError, ValidationError) as error:
            log.warning("the kept tokens cannot be used (%s); the dataset is checked anew", error)
            return None

    def keep(self, data: Path, result: CheckResult, report: Report) -> None:
        """Keep what was just written, where there is room for it."""
        if not self._used:
            return
        try:
            self._write(data, result, report)
            self._prune()
        except OSError as error:
            log.warning("the tokens are not kept for other jobs: %s", error)

    def _copied(self, data: Path) -> tuple[CheckResult, dict[str, Any]]:
        if not is_whole(self._entry):
            shutil.rmtree(self._entry)
            raise ValueError("the entry is damaged and was removed")
        result = CheckResult.model_validate_json((self._entry / RESULT).read_bytes())
        report: dict[str, Any] = json.loads((self._entry / REPORT).read_bytes())
        with folder_aside(data.parent) as aside:
            shutil.copytree(self._entry / DATA, aside, dirs_exist_ok=True, copy_function=shutil.copyfile)
            shutil.rmtree(data, ignore_errors=True)
            aside.rename(data)
            sync_folder(data.parent)
        os.utime(self._entry / DIGEST_FILE)
        return result, report

    def _write(self, data: Path, result: CheckResult, report: Report) -> None:
        size, free = folder_bytes(data), shutil.disk_usage(self._folder).free
        if self._entry.exists() or size * ROOM > free:
            return
        with folder_aside(self._folder) as aside:
            shutil.copytree(data, aside / DATA, copy_function=shutil.copyfile)
            (aside / RESULT).write_text(result.model_dump_json(by_alias=True))
            (aside / REPORT).write_text(json.dumps(asdict(report)))
            seal(aside, self._entry)

    def _prune(self) -> None:
        """Remove the entries that were not used for longest; one that is being copied is then checked anew."""
        entries = sorted(self._folder.glob(f"*/{DIGEST_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
        dead = (path for path in self._folder.glob(".aside-*") if time.time() - path.stat().st_mtime > STALE_SECONDS)
        for folder in (*(path.parent for path in entries[KEPT:]), *dead):
            shutil.rmtree(folder, ignore_errors=True)


def _settings(given: CheckInput) -> dict[str, Any]:
    """What check does with the rows, however it was written; where they come from counts by their digest only.

    Each is named here: a field that a release adds to the spec changes no key, unless it counts and is added.
    """
    dataset = DatasetSource.model_validate(given.dataset)
    training, method = Training.model_validate(given.training), Method.model_validate(given.method)
    split = dataset.validation
    return {
        "format": dataset.format,
        "columns": dataset.column_names,
        "sides": "apart" if split.named else "chosen" if dataset.files else "by name",
        "share": None if split.named else str(Decimal(split.share).normalize()),
        "learns": method.learns,
        "training": [training.seed, training.max_sequence_length, training.packing],
    }


def _tokenizer(model: Path) -> list[tuple[str, str]]:
    found = (path for path in model.rglob("*") if path.is_file() and path.name != DIGEST_FILE)
    read = (path for path in found if not any(fnmatchcase(path.name, pattern) for pattern in NOT_OF_TOKENIZERS))
    return sorted((path.relative_to(model).as_posix(), file_digest(path)) for path in read)


def _versions() -> list[str]:
    return [platform.python_version(), *map(_version, LIBRARIES)]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # what needs it fails, so nothing that is kept hangs on it
        return ""


def _code() -> list[str]:
    """Digests of the modules that decide what an entry holds: a release that changes one starts with an empty cache."""
    own = (Path(__file__).with_name(f"{name}.py") for name in CODE)
    return [file_digest(path) for path in (*own, *sorted(Path(tuneloop_core.data.__file__).parent.rglob("*.py")))]
