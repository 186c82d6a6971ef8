"""``pvc://CLAIM/PATH``: the artifact as a folder named by its digest in another claim of the namespace.

Written aside and renamed, so the name appears with the whole content or not at all. Never follows a link out of the
claim, and never touches what lies beside.
"""

import errno
import shutil
import time
from pathlib import Path

from tuneloop_trainer.exports.failures import ExportError
from tuneloop_trainer.files import (
    DIGEST_FILE,
    copy_file,
    folder_aside,
    folder_bytes,
    gib,
    is_whole,
    seal,
    sealed_digest,
)

STALE_SECONDS = 24 * 3600


def export_to_claim(artifact: Path, mount: Path, claim: str, path: str) -> str:
    """Copy the artifact below ``mount``; returns ``pvc://CLAIM/PATH/DIGEST``."""
    digest = sealed_digest(artifact)
    target = _inside(mount, path, claim) / digest.removeprefix("sha256:")
    if not (sealed_digest(target) == digest and is_whole(target)):
        try:
            _copy(artifact, target)
        except OSError as error:
            raise _failure(error, claim, mount, folder_bytes(artifact)) from error
    return f"pvc://{claim}/{path}/{target.name}"


def _inside(mount: Path, path: str, claim: str) -> Path:
    base = mount.resolve()
    folder = (base / path).resolve()
    if not folder.is_relative_to(base):
        raise ExportError(f"{path} leads out of claim {claim} through a link", "Name a folder that lies in the claim")
    return folder


def _copy(artifact: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target.parent)
    with folder_aside(target.parent) as aside:
        for path in sorted(artifact.rglob("*")):
            if path.is_file() and path.name != DIGEST_FILE:
                copy_file(path, aside / path.relative_to(artifact))
        seal(aside, target)


def _remove_stale(folder: Path) -> None:
    """What exports that died a day ago left aside."""
    for path in folder.glob(".aside-*"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _failure(error: OSError, claim: str, mount: Path, needed: int) -> ExportError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        usage = shutil.disk_usage(mount)
        said = f"claim {claim} is full: {gib(needed)} do not fit, {gib(usage.free)} of {gib(usage.total)} are free"
        return ExportError(said, f"Free space in claim {claim} or enlarge it")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        said = f"claim {claim} cannot be written by group 65532 ({error.strerror})"
        return ExportError(said, "Make the folder writable for that group, or take a claim that is not read-only")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return ExportError(f"a file is where a folder should be ({error.strerror})", "Name a folder in output.uri")
    said = f"{type(error).__name__}: {error.strerror}"
    return ExportError(said, f"Check the volume of claim {claim}; it is tried again", transient=True)
