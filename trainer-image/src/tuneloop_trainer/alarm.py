"""Ends a process whose peers failed, also while it waits in a message that will never come.

A thread beside the training asks the store that torchrun's first agent holds, through a connection of its own. Every
rank says there that it is alive, that it failed, or that all is done. It cannot mend anything, and it never saves.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tuneloop_trainer.peers import Peers

EVERY_SECONDS = 2.0
SILENCE_SECONDS = 120.0  # of a rank whose node is gone: its connections may stay open for long
GRACE_SECONDS = 20.0  # for a rank's own end: what failed for one often failed for all
DONE_SECONDS = 3600.0
FAILED, DONE = "tuneloop/failed", "tuneloop/done"


class Alarm:
    """Calls ``give_up(words)`` in its own thread when another rank failed or fell silent."""

    def __init__(self, peers: Peers, give_up: Callable[[str], None]) -> None:
        self._peers, self._give_up = peers, give_up
        self._ended = threading.Event()
        self._store = _connect()
        self._seen: dict[int, tuple[int, float]] = {}
        self._thread = threading.Thread(target=self._run, name="alarm", daemon=True)
        self._thread.start()

    def close(self, *, failed: bool) -> None:
        """The stage is over here: tell the others, and where it went well, go when the leader's has."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):
            if failed:
                self._store.set(FAILED, str(self._peers.rank))
            elif self._peers.leads:
                self._store.set(DONE, "1")

    def await_leader(self) -> bool:
        """Whether the leader finished too: until then no other rank may count as done."""
        until = time.monotonic() + DONE_SECONDS
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < until:
                if self._store.check([DONE]):
                    return True
                if self._store.check([FAILED]):
                    return False
                time.sleep(EVERY_SECONDS / 4)
        return False

    def _run(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            words = self._look()
            if words and not self._ended.wait(GRACE_SECONDS):
                self._give_up(words)
                return

    def _look(self) -> str:
        """What is wrong, in words."""
        try:
            self._store.add(f"tuneloop/alive/{self._peers.rank}", 1)
            if self._store.check([FAILED]):
                return f"rank {self._store.get(FAILED).decode()} failed"
            return self._silent() if self._peers.leads else ""
        except RuntimeError:
            return "the first pod does not answer"

    def _silent(self) -> str:
        for rank in range(1, self._peers.world):
            count, now = self._store.add(f"tuneloop/alive/{rank}", 0), time.monotonic()
            if count != self._seen.get(rank, (-1, 0.0))[0]:
                self._seen[rank] = (count, now)
            elif count and now - self._seen[rank][1] > SILENCE_SECONDS:
                return f"rank {rank} has been silent for {SILENCE_SECONDS:.0f} s"
        return ""


def _connect() -> TCPStore:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30), wait_for_workers=False)
