"""The path of a ``pvc://`` URI below the mount of its claim."""

from pathlib import Path

from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.paths import Paths


def claim_folder(paths: Paths, mount: str, uri: str, which: str) -> Path:
    """The file or folder that a URI names; links that lead out of the claim are refused."""
    base = (paths.root / mount.lstrip("/") if mount else paths.claim(which)).resolve()
    inner = uri.removeprefix("pvc://").partition("/")[2].strip("/")
    folder = (base / inner).resolve()
    if not folder.is_relative_to(base):
        raise StageError(Reason.URI_REFUSED, f"{uri} leads out of its claim through a link.")
    return folder
