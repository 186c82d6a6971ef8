"""Runs the programs that the demo is made of, quietly, and shows their words when they fail."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneloop_demo.errors import DemoError

TAIL = 4000  # characters of output worth showing


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program to its end and return its standard output; raise ``DemoError`` with its words when it fails."""
    words = [str(part) for part in command]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, env=env, cwd=cwd, check=False)
    except FileNotFoundError as error:
        raise DemoError(f"{words[0]} is not there: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-TAIL:]
        raise DemoError(f"`{' '.join(words)}` ended with {done.returncode}:\n{said}")
    return done.stdout
