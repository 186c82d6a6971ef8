"""Files that are either whole or not there: written aside, fsynced, renamed, and checked by digest.

The store outlives pods that die at any moment, so nothing is ever written in place. Never follows links out of a
folder, and never deletes what it did not write.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from safetensors import SafetensorError
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError

DIGEST_FILE = "DIGEST"
CHUNK = 4 * 1024 * 1024
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old or the new content, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_aside(parent: Path) -> Iterator[Path]:
    """A fresh folder beside its later place (same file system, so that a rename will do); removed if it stays."""
    parent.mkdir(parents=True, exist_ok=True)
    aside = parent / f".aside-{uuid4().hex[:12]}"
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_asides(parent: Path) -> None:
    """Remove what processes that were killed left half-written in a folder; only for one who writes there alone."""
    for path in parent.glob(".aside-*"):
        shutil.rmtree(path, ignore_errors=True)


def seal(aside: Path, target: Path) -> str:
    """Give a finished folder its digest file and its name; returns the digest. Another's equal folder is kept."""
    digest = folder_digest(aside)
    (aside / DIGEST_FILE).write_text(digest + "\n")
    for path in _files(aside):
        _fsync(path)
    sync_folder(aside)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not is_whole(target):
        shutil.rmtree(target)
    try:
        aside.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    sync_folder(target.parent)
    return digest


def sealed_digest(folder: Path) -> str:
    """The digest a folder was sealed with; empty when it never was. Cheap: reads one small file."""
    path = folder / DIGEST_FILE
    return path.read_text(errors="replace").strip() if path.is_file() else ""


def is_whole(folder: Path) -> bool:
    """Whether a folder's content still is what was sealed. Reads every byte."""
    wanted = sealed_digest(folder)
    return bool(wanted) and folder_digest(folder) == wanted


def folder_digest(folder: Path) -> str:
    """``sha256:<hex>`` over the sorted lines ``<file digest>  <relative path>``, the digest file left out."""
    lines = (f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder))
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    """Size of the files in a folder."""
    return sum(path.stat().st_size for path in _files(folder))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes; OSError (ELOOP) where a link is instead of the file."""
    with os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as reader:
        copy_stream(reader, target)


def copy_stream(reader: BinaryIO, target: Path) -> None:
    """Write what is left of a stream into a file, made with its folders."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            writer.write(chunk)


@contextmanager
def store_full_told(folder: Path, what: str) -> Iterator[None]:
    """Turn "no space left" into ``StoreFull`` with sizes."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise store_full(folder, what) from error


def _is_full(error: Exception) -> bool:
    """safetensors, which writes checkpoints and weights, tells the kernel's number in words only."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    return any(f"(os error {number})" in str(error) for number in NO_SPACE)


def store_full(folder: Path, what: str, needed: int = 0) -> StageError:
    """The error for a full store: what was being written, the space that is free, the space there is."""
    usage = shutil.disk_usage(folder if folder.exists() else folder.parent)
    wants = f" needs {gib(needed)} and" if needed else ""
    return StageError(
        Reason.STORE_FULL,
        f"{what}{wants} does not fit in the store: {gib(usage.free)} of {gib(usage.total)} are free. Enlarge the claim "
        "tuneloop-store, or delete FineTuneJobs and ModelDeployments that nobody needs: the next fetch removes what "
        "only they used. Artifacts are yours to remove.",
        needed,
    )


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def _files(folder: Path) -> list[Path]:
    found = (
        path for path in folder.rglob("*") if path.name != DIGEST_FILE and path.is_file() and not path.is_symlink()
    )
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _fsync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
