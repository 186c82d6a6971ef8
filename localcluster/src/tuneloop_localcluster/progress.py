"""Lines that say what is being done and how long it took, on stderr, so that stdout stays for results."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Prints one line as a step ends, and one as a step that takes long begins."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def elapsed(self) -> float:
        """Seconds since this run began."""
        return time.monotonic() - self._start

    def say(self, words: str) -> None:
        """Print one line with the seconds since the start."""
        with self._lock:
            print(f"[{self.elapsed():6.1f}s] {words}", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, words: str, *, announce: bool = False) -> Iterator[None]:
        """Time what happens inside; with `announce` say so before as well."""
        if announce:
            self.say(f"{words} ...")
        began = time.monotonic()
        yield
        self.say(f"{words}: {time.monotonic() - began:.1f} s")
