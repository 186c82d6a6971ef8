"""Keeps kopf from computing what we do not use: diffs and handler progress of every event of every object.

They serve ``on.create`` and its like; with ``on.event`` alone they are copied, compared and dropped, which was more
than half of kopf's time per event. Never stores anything.
"""

from typing import Any

import kopf


class NoDiffs(kopf.DiffBaseStorage):
    """No last-handled configuration: it is neither built, nor read, nor written."""

    def build(self, **_: Any) -> Any:
        """Nothing to compare."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""


class NoProgress(kopf.ProgressStorage):
    """No progress of handlers: ``on.event`` handlers have none."""

    def fetch(self, **_: Any) -> Any:
        """Nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""

    def purge(self, **_: Any) -> None:
        """Nothing to remove."""

    def touch(self, **_: Any) -> None:
        """Touch nothing."""

    def clear(self, *, essence: Any) -> Any:
        """As it is."""
        return essence
