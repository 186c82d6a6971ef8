"""Locks between processes: files that the kernel unlocks when their holder ends, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneloop_localcluster.progress import Progress


@contextmanager
def exclusively(lock: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock alone; says so when it has to wait for another process."""
    with _locked(lock, fcntl.LOCK_EX, progress):
        yield


@contextmanager
def together(lock: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock beside others that hold it together; waits only for one that holds it alone."""
    with _locked(lock, fcntl.LOCK_SH, progress):
        yield


@contextmanager
def alone_if_free(lock: Path) -> Iterator[bool]:
    """Try to hold a lock alone without waiting; says whether it is held."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def _locked(lock: Path, kind: int, progress: Progress) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"another process holds {lock}; waiting for it")
            fcntl.flock(file, kind)
        yield
