"""Where the demo's things lie: the checkout that it runs from, and the cache outside it. Never creates anything."""

import os
from pathlib import Path


def repository() -> Path:
    """Return the checkout: the demo runs from source and needs the chart, the examples and the Dockerfiles."""
    return Path(__file__).resolve().parents[3]


def cache() -> Path:
    """Return the cache of this user: TUNELOOP_CACHE, else ~/.cache/tuneloop."""
    return Path(os.environ.get("TUNELOOP_CACHE") or Path.home() / ".cache" / "tuneloop").absolute()
