"""Ends a process whose training hangs: a lost collective, a stuck driver, a file system that does not answer.

A thread beside the training looks whether there was a sign of life in time. It cannot mend a hang, and it never saves:
the thread that could is the one that hangs. The last checkpoint is what the next pod goes on from.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType


class Watchdog:
    """Calls ``give_up(seconds of silence)`` in its own thread when ``beat`` was not called for ``seconds``."""

    def __init__(
        self, seconds: float, give_up: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._give_up, self._clock = seconds, give_up, clock
        self._last, self._paused = clock(), False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def beat(self) -> None:
        """A sign of life."""
        self._last = self._clock()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, no silence is too long: what is written to the store takes as long as the store does."""
        self._paused = True
        try:
            yield
        finally:
            self.beat()
            self._paused = False

    def look(self) -> bool:
        """One look; gives up and returns True when the silence was too long."""
        if self._paused:  # asked first: the end of a pause is a sign of life
            return False
        silence = self._clock() - self._last
        if silence < self._seconds:
            return False
        self._give_up(silence)
        return True

    def __enter__(self) -> "Watchdog":
        self.beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(min(5.0, self._seconds / 4)):
            if self.look():
                return
