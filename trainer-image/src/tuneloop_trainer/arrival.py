"""What every download has in common: how large it may be, whether there is room, and how much of it has arrived."""

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import folder_bytes, gib, store_full

log = logging.getLogger("tuneloop")

REPORT_SECONDS = 5.0


def require_allowed(reason: Reason, size: int, max_bytes: int, uri: str, advice: str = "") -> None:
    """Refuse what is larger than the installation allows; ``max_bytes`` 0 is no cap. ``advice``: what would be less."""
    if max_bytes and size > max_bytes:
        words = f"{uri} has {gib(size)}; hub.maxBytes of this installation allows {gib(max_bytes)}."
        raise StageError(reason, f"{words} {advice}".rstrip())


def require_room(folder: Path, size: int, uri: str) -> None:
    """Raise ``StoreFull`` before anything is written, where the size says already that it does not fit."""
    if size > shutil.disk_usage(folder).free:
        raise store_full(folder, uri, size)


@contextmanager
def reporting(folder: Path, what: str) -> Iterator[None]:
    """Log every few seconds how much has arrived."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(REPORT_SECONDS):
            log.info("%s: %s so far", what, gib(_arrived(folder)))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _arrived(folder: Path) -> int:
    try:
        return folder_bytes(folder)
    except OSError:  # a file was renamed while it was counted
        return 0
