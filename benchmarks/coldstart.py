"""Cold start of a server pod's process, by phase: from its first instruction to the first token of a chat.

    make bench-coldstart                                             # a tiny random model
    make bench-coldstart ARGS="--model ~/.cache/tuneloop/models/..."
    make bench-coldstart ARGS="--against v0.1.0 --rounds 3"          # before and after, taking turns

The real ``python -m tuneloop_server`` with the real engine on CPU, in the server image's own environment (``make test``
makes it), byte-compiled first as the image is. ``--against`` starts the code of another commit in the same environment,
in turn. Medians over the rounds. CPU seconds are of the whole process tree until ready: on a machine that others use
they say more than the clock. The pod's own phases (scheduled, image) are in ``status.coldStart``, not here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _children import end_in_order, run

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("TUNELOOP_CACHE") or Path.home() / ".cache" / "tuneloop")
ENVIRONMENT = Path(os.environ.get("TUNELOOP_SERVER_VENV") or CACHE / "server-venv")
AFTER = ("ready", "firstToken", "secondFirstToken", "cpu")


def one(code: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One start with the server's code of a checkout."""
    folders = (code / "server-image/src", code / "core/src", ROOT / "server-image/tests/support", ROOT / "demo/src")
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, folders))}
    command = [str(ENVIRONMENT / "bin/python"), str(ROOT / "benchmarks/_coldstart_side.py")]
    command += ["--threads", str(options.threads), *(["--model", str(options.model)] if options.model else [])]
    done = run(command, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the start with the code of {code} failed with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def prepare() -> None:
    """Byte code beside every source, as in the image; without it imports take twice as long."""
    uv = [str(ROOT / "scripts/uv"), "sync", "--quiet", "--frozen", "--directory", str(ROOT / "server-image")]
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(ENVIRONMENT), "VIRTUAL_ENV": ""}
    run([*uv, "--extra", "cpu"], env=environment, check=True)
    compile_ = ["-m", "compileall", "-q", "-j", "2", str(ENVIRONMENT / "lib")]
    run([str(ENVIRONMENT / "bin/python"), *compile_], check=False, stdout=subprocess.DEVNULL)


def measure(options: argparse.Namespace, sides: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """All rounds, each side in turn; the first start of all is thrown away, it reads the disk."""
    one(ROOT, options)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, code in sides.items():
            rounds[name].append(one(code, options))
            print(f"round {number + 1}, {name}: {json.dumps(rounds[name][-1])}", file=sys.stderr, flush=True)
    return rounds


def medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Of each phase and of what came after."""
    flat = [each["phases"] | {name: each[name] for name in AFTER} for each in rounds]
    names = dict.fromkeys(name for each in flat for name in each)
    return {name: statistics.median(each.get(name, 0.0) for each in flat) for name in names}


def table(found: dict[str, dict[str, float]]) -> str:
    """Phases down, sides across, seconds."""
    names = dict.fromkeys(name for side in reversed(found.values()) for name in side)
    lines = [f"{'seconds':<18}" + "".join(f"{side:>12}" for side in found)]
    lines += [f"{name:<18}" + "".join(f"{side.get(name, 0.0):>12.2f}" for side in found.values()) for name in names]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a model; a tiny random one without it")
    parser.add_argument("--against", default="", help="a commit whose code is started in turn")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="OpenMP threads, as a pod of so many CPUs has")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "coldstart.json")
    options = parser.parse_args()
    end_in_order()
    options.model = options.model.expanduser().resolve() if options.model else None
    prepare()
    with tempfile.TemporaryDirectory() as name:
        sides = {"now": ROOT}
        if options.against:
            other = Path(name) / "other"
            archive = ["git", "-C", str(ROOT), "archive", options.against]
            packed = run(archive, check=True, stdout=subprocess.PIPE).stdout
            other.mkdir()
            run(["tar", "-x", "-C", str(other)], sent=packed, check=True)
            sides = {options.against[:12]: other, **sides}
        rounds = measure(options, sides)
    found = {side: medians(each) for side, each in rounds.items()}
    print(table(found))
    options.out.parent.mkdir(exist_ok=True)
    day = datetime.now(UTC).date().isoformat()
    options.out.write_text(json.dumps({"date": day, "medians": found, "rounds": rounds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
