"""The cold start, split into phases, so that "why is it not ready" has an answer. Times in seconds, monotonic.

Phases never overlap, so what they do not add up to is what nobody named. Their order is the order of a start:
``launch`` (the process, to its open port), ``imports``, ``configuration``, ``engine`` (its process, the KV cache),
``weights``, ``compile`` (GPU), ``http``, ``warmUp`` (one real answer), ``adapters``; ``total`` since the process began.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Phases:
    """Seconds per finished phase, in order, and the one that runs now. ``age`` is how old the process is already."""

    def __init__(self, age: float = 0.0) -> None:
        self._began = time.monotonic() - age
        self._seconds: dict[str, float] = {"launch": age} if age else {}
        self._now: tuple[str, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one phase; it is shown while it runs, too."""
        self._now = (name, time.monotonic())
        try:
            yield
        finally:
            self._seconds[name] = time.monotonic() - self._now[1]
            self._now = None

    def take_out(self, whole: str, name: str, seconds: float) -> None:
        """A phase that was measured elsewhere, within ``whole``, which is shorter by it from now on."""
        self._seconds[whole] = max(0.0, self._seconds[whole] - seconds)
        self._seconds[name] = seconds

    def finish(self) -> None:
        """The pod is ready: the sum, from the process's start."""
        self._seconds.setdefault("total", time.monotonic() - self._began)

    def seconds(self) -> dict[str, float]:
        """All phases so far, hundredths of a second; the running one counts to now."""
        found = dict(self._seconds)
        if self._now is not None:
            found[self._now[0]] = time.monotonic() - self._now[1]
        return {name: round(value, 2) for name, value in found.items()}


def process_age() -> float:
    """Seconds since this process was made; starting anew in it (exec) does not make it younger."""
    started = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return max(0.01, time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK"))


def read_reported(folder: Path) -> dict[str, float]:
    """What the engine's process wrote (``enginelog.py``): phase to seconds."""
    return {name: float(file.read_text()) for name in ("weights", "compile") if (file := folder / name).exists()}
