"""Adapters loaded and unloaded under load, on one real engine: how long a load takes, and that nothing is lost.

    make bench-adapters                     # 20 adapters, vLLM on CPU with a tiny random model
    make bench-adapters ARGS="--loads 100 --callers 8"

Each adapter answers with its own marker letter only (``server-image/tests/support/markers.py``), so an answer by other
weights shows. While ``--callers`` ask without pause, adapters are loaded and unloaded by the operator's poke; the time
of a load is from the poke to its answer that says Loaded. Then all of them are listed at once, more than the engine
holds, and a first token is timed of held and of parked ones. Prints a table, writes JSON; exit code 1 if a request
failed or an answer was wrong. The engine runs in the server image's own environment (``make test`` makes it).
"""

import os
import sys
from pathlib import Path

from _children import end_in_order, run

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("TUNELOOP_CACHE", Path.home() / ".cache" / "tuneloop"))


def main(arguments: list[str]) -> int:
    """Run the side that has the engine."""
    venv = os.environ.get("UV_PROJECT_ENVIRONMENT") or str(CACHE / "server-venv")
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": venv, "VIRTUAL_ENV": ""}
    support, demo = ROOT / "server-image/tests/support", ROOT / "demo/src"
    environment["PYTHONPATH"] = os.pathsep.join((str(support), str(demo)))
    uv = [str(ROOT / "scripts/uv"), "run", "--quiet", "--frozen", "--directory", str(ROOT / "server-image")]
    side = [*uv, "--extra", "cpu", "python", str(ROOT / "benchmarks/_adapters_side.py")]
    end_in_order()
    return run([*side, f"--results={CACHE / 'benchmarks'}", *arguments], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
