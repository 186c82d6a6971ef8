"""The cold start, split into phases, so that "why is it not ready" has an answer. Times in seconds, monotonic."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Phases:
    """Seconds per finished phase, in order, and the one that runs now."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds: dict[str, float] = {}
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

    def add(self, name: str, seconds: float) -> None:
        """A phase that was measured elsewhere, within another one."""
        self._seconds[name] = seconds

    def finish(self) -> None:
        """The pod is ready: the sum, from the launcher's first line."""
        self._seconds.setdefault("total", time.monotonic() - self._began)

    def seconds(self) -> dict[str, float]:
        """All phases so far, hundredths of a second; the running one counts to now."""
        found = dict(self._seconds)
        if self._now is not None:
            found[self._now[0]] = time.monotonic() - self._now[1]
        return {name: round(value, 2) for name, value in found.items()}


def read_reported(folder: Path) -> dict[str, float]:
    """What the engine's process wrote (``enginelog.py``): phase to seconds."""
    return {file.name: float(file.read_text()) for file in sorted(folder.glob("*")) if file.is_file()}
