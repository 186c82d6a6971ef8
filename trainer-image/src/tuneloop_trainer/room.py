"""Room in the namespace's store: what nobody uses goes, models and datasets only when their room is needed.

The operator says what is in use; whatever was used since it said so is kept too, with an hour to spare, so that a fetch
that ended a moment ago never loses what it brought. Never touches artifacts: they are the users'.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from tuneloop_core.stages import OWNER_CHARACTERS, Reason, StoreUse

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import DIGEST_FILE, folder_bytes, gib
from tuneloop_trainer.paths import Paths

log = logging.getLogger("tuneloop")

Result = TypeVar("Result")

SPARE_SECONDS = 3600.0
"""Clocks of nodes differ, and the operator may be a while in recording what a fetch answered."""


def mark_used(folder: Path) -> None:
    """Remember that a model or dataset was wanted now: the least recently used go first."""
    os.utime(folder / DIGEST_FILE)


class Room:
    """What may be removed for one fetch; nothing where the use of the store is not known."""

    def __init__(self, paths: Paths, use: StoreUse | None) -> None:
        self._paths, self._use = paths, use
        self._before = datetime.fromisoformat(use.listed_at).timestamp() - SPARE_SECONDS if use else 0.0

    def sweep(self) -> None:
        """Remove the work folders of jobs that succeeded, whose artifact has all of it, and of resources gone."""
        folder = self._paths.all_work
        if self._use is None or not folder.is_dir():
            return
        needed = set(self._use.owners)
        for path in sorted(folder.iterdir()):
            if path.name[:OWNER_CHARACTERS] in needed or path.stat().st_mtime >= self._before:
                continue
            try:
                log.info("removed %s, which no resource needs: %s", path.name, gib(_remove(path)))
            except OSError as error:  # another fetch sweeps too, or a pod of it still ends
                log.warning("%s was not removed: %s", path.name, error)

    def make(self, fetch: Callable[[], Result]) -> Result:
        """What ``fetch`` returns, tried again after each removal where the store was full; its error if all is used."""
        while True:
            try:
                return fetch()
            except StageError as error:
                if error.reason is not Reason.STORE_FULL or not self._free(error.needed_bytes):
                    raise

    def _free(self, needed: int) -> bool:
        """Remove the least recently used until so much is free, one at least; whether any was removed."""
        removed = False
        for path in self._removable():
            if removed and shutil.disk_usage(self._paths.models).free >= needed:
                break
            size = _remove(path)
            log.info("removed %s, used by nobody, to make room: %s", path.relative_to(self._paths.store), gib(size))
            removed = True
        return removed

    def _removable(self) -> list[Path]:
        """Models and datasets that nobody uses, the least recently used first."""
        if self._use is None:
            return []
        used = {self._paths.store / path for path in self._use.paths}
        found = {digest.parent: digest.stat().st_mtime for digest in self._digests() if digest.parent not in used}
        return sorted((path for path, when in found.items() if when < self._before), key=lambda path: found[path])

    def _digests(self) -> Iterator[Path]:
        for root in (self._paths.models, self._paths.datasets):
            yield from root.rglob(DIGEST_FILE)


def _remove(folder: Path) -> int:
    """Remove a folder under another name, so that half of it never looks whole; returns its size in bytes."""
    size = folder_bytes(folder)
    doomed = folder.with_name(f".aside-{uuid4().hex[:12]}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    return size
