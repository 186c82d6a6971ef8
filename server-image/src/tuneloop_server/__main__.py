"""``python -m tuneloop_server``: set the environment, start anew in it, then serve.

What is preloaded, and OpenMP, look at the environment only when a process starts, so this process starts itself once
more. Until then nothing but the standard library is imported: it would be imported twice.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from tuneloop_server import environment
from tuneloop_server.limits import read_limits

_ENTERED: Final = "TUNELOOP_SERVER_ENTERED"


def enter() -> None:
    """Start anew in the engine's environment; return where that has happened."""
    if os.environ.get(_ENTERED) == "1":
        environment.clear()
        return
    home = tempfile.mkdtemp(prefix="tuneloop-")
    values = environment.engine_environment(read_limits(), _accelerators(), home, Path(sys.prefix))
    environment.clear()
    os.environ.update({**values, _ENTERED: "1"})
    os.execv(sys.executable, [sys.executable, "-m", "tuneloop_server"])  # noqa: S606 - ourselves


def _accelerators() -> int:
    """As server.json says; what is wrong with that file is said later, by ``settings``."""
    try:
        return int(json.loads(environment.config_path().read_bytes()).get("accelerators", 0))
    except (OSError, ValueError, TypeError, AttributeError):
        return 0


if __name__ == "__main__":
    enter()
    from tuneloop_server.launcher import leave
    from tuneloop_server.server import main

    leave(main())
