"""Times the demo's phases and says on the terminal what goes on. Never decides anything."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """The phases so far: name and seconds, in the order in which they ended."""

    def __init__(self) -> None:
        self.done: list[tuple[str, float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase and time it."""
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self.done.append((name, seconds))
        print(f"   {clock(seconds)}", flush=True)


def clock(seconds: float) -> str:
    """``75.2`` as ``1 min 15 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class LiveLine:
    """One line that changes in place on a terminal; elsewhere a new line at most every ten seconds."""

    QUIET_SECONDS = 10.0

    def __init__(self) -> None:
        self._shown = ""
        self._at = float("-inf")

    def show(self, text: str) -> None:
        """Show the text if it is news."""
        now = time.monotonic()
        if text == self._shown or (not sys.stdout.isatty() and now - self._at < self.QUIET_SECONDS):
            return
        self._shown, self._at = text, now
        print(f"\r\033[K   {text}" if sys.stdout.isatty() else f"   {text}", end="", flush=True)
        if not sys.stdout.isatty():
            print(flush=True)

    def end(self) -> None:
        """Leave the last text standing."""
        if sys.stdout.isatty() and self._shown:
            print(flush=True)
