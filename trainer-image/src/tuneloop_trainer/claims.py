"""A user's claim behind a ``pvc://`` URI: what is read lies in it, whatever its links say.

Links that stay in the claim are followed: a hub cache is made of them. One that leads out would bring files of this
pod, such as its tokens, into the store. So what is copied is judged by where the open file lies, not by its name alone.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import copy_stream
from tuneloop_trainer.paths import Paths


@dataclass(frozen=True)
class Claim:
    """A mounted claim and what a URI names in it; ``base`` and ``place`` are without links."""

    uri: str
    base: Path
    place: Path

    def listing(self) -> dict[str, Path]:
        """All files and links below the place, by their name from there; linked folders are not entered."""
        found = (path for path in sorted(self.place.rglob("*")) if path.is_symlink() or path.is_file())
        return {path.relative_to(self.place).as_posix(): path for path in found}

    def files(self, paths: Iterable[Path]) -> list[Path]:
        """Those of the paths that are files, as they were named; raises ``URIRefused`` for one that leads out."""
        return [path for path in paths if self._inside(_without_links(path), path).is_file()]

    def copy(self, path: Path, target: Path) -> None:
        """Copy a file of the claim; raises ``URIRefused`` also for one that was exchanged since it was listed."""
        with path.open("rb") as stream:
            self._inside(_place_of(stream), path)
            copy_stream(stream, target)

    def _inside(self, found: Path, path: Path) -> Path:
        if found.is_relative_to(self.base):
            return found
        shown = path.relative_to(self.place).as_posix() if path.is_relative_to(self.place) else path.name
        raise _refusal(self.uri, f"{shown} is or lies behind a link that leads out of the claim")


def open_claim(paths: Paths, mount: str, uri: str, which: str) -> Claim:
    """The claim that is mounted for ``which``, at the file or folder that the URI names, whether it is there or not."""
    base = _without_links(paths.root / mount.lstrip("/") if mount else paths.claim(which))
    inner = uri.removeprefix("pvc://").partition("/")[2].strip("/")
    place = _without_links(base / inner)
    if not place.is_relative_to(base):
        raise _refusal(uri, "it leads out of its claim through a link")
    return Claim(uri, base, place)


def _without_links(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve() raises for a link to itself


def _place_of(stream: BinaryIO) -> Path:
    """Where an open file lies, by the kernel's word."""
    return Path(f"/proc/self/fd/{stream.fileno()}").readlink()


def _refusal(uri: str, found: str) -> StageError:
    return StageError(
        Reason.URI_REFUSED, f"{uri}: {found}. Links within the claim are followed: put what is meant into it."
    )
