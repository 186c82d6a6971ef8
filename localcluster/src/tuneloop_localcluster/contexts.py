"""Build contexts: the files of the checkout that an image may see, tracked by git or new, never ignored ones."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.imagetable import Image, excluded

_NEVER = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def files(repository: Path, image: Image) -> list[str]:
    """Paths of an image's context, relative to the repository; raises a ClusterError if its Dockerfile is missing."""
    if not (repository / image.dockerfile).is_file():
        raise ClusterError(f"image {image.name}: there is no {image.dockerfile} in {repository}")
    found = _by_git(repository, image.context)
    if found is None:
        found = _by_walking(repository, image.context)
    return sorted({path for path in found if not excluded(path) and (repository / path).is_file()})


def contents(repository: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """These files by path, each with a leading byte that says whether it is executable."""
    return {path: _content(repository / path) for path in paths}


def _content(path: Path) -> bytes:
    return (b"x" if os.access(path, os.X_OK) else b"-") + path.read_bytes()


def stage(repository: Path, image: Image, folder: Path) -> dict[str, bytes]:
    """Copy the context, and nothing else, into a new folder; returns its contents as they were copied."""
    folder.mkdir(parents=True)
    paths = files(repository, image)
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repository / path, folder / path)
    return contents(folder, paths)


def _by_git(repository: Path, inputs: Sequence[str]) -> list[str] | None:
    """What git tracks or would; None where there is no git or no checkout of it (a release archive)."""
    command = ["git", "-c", f"safe.directory={repository}", "-C", str(repository), "ls-files", "-z"]
    try:
        flags = ["--cached", "--others", "--exclude-standard", "--", *inputs]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return [path for path in done.stdout.split("\0") if path] if done.returncode == 0 else None


def _by_walking(repository: Path, inputs: Sequence[str]) -> list[str]:
    paths = (path for name in inputs for path in [repository / name, *(repository / name).rglob("*")])
    relative = (path.relative_to(repository) for path in paths)
    return [str(path) for path in relative if not _NEVER.intersection(path.parts)]
