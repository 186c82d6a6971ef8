"""Waiting for something to become true, with words for the case that it does not."""

import time
from collections.abc import Callable

from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.processes import Daemon


def until(what: str, ready: Callable[[], bool], *, daemon: Daemon | None = None, limit: float = 120.0) -> None:
    """Poll `ready` until it is true.

    Raises a ClusterError after `limit` seconds, or at once when the daemon that should make it true has ended.
    """
    deadline = time.monotonic() + limit
    while not ready():
        if daemon is not None and daemon.pid is None:
            raise ClusterError(f"{daemon.name} ended while waiting for {what}: {daemon.last_words()}")
        if time.monotonic() > deadline:
            words = daemon.last_words() if daemon is not None else ""
            raise ClusterError(f"waited {limit:.0f} s for {what} in vain. {words}")
        time.sleep(0.1)
