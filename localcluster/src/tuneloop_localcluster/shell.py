"""Running other programs to their end, with errors that show what they said."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneloop_localcluster.errors import ClusterError

_TAIL_LINES = 25


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
) -> str:
    """Run a program and return what it wrote to stdout.

    With `log`, both streams go to that file instead (and "" is returned). A failure raises a ClusterError with
    the command, its exit code and the last lines it wrote.
    """
    words = [str(part) for part in command]
    try:
        done = _run_to_file(words, log, env, cwd) if log else _run_captured(words, stdin, env, cwd)
    except FileNotFoundError as error:
        raise ClusterError(
            f"{words[0]} is not installed: run `localcluster up`, or install it and try again"
        ) from error
    if done.returncode != 0:
        said = log.read_text(errors="replace") if log else f"{done.stdout}{done.stderr}"
        where = f" (all of it: {log})" if log else ""
        tail = "\n".join(said.splitlines()[-_TAIL_LINES:])
        raise ClusterError(f"`{shlex.join(words)}` ended with {done.returncode}; its last words{where}:\n{tail}")
    return done.stdout or ""


def try_run(command: Sequence[str | Path]) -> bool:
    """Run a program whose failure is an answer; say whether it succeeded."""
    words = [str(part) for part in command]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _run_captured(
    words: list[str], stdin: str | None, env: Mapping[str, str] | None, cwd: Path | None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, input=stdin, capture_output=True, text=True, env=env, cwd=cwd, check=False)


def _run_to_file(
    words: list[str], log: Path, env: Mapping[str, str] | None, cwd: Path | None
) -> "subprocess.CompletedProcess[str]":
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        return subprocess.run(words, stdout=out, stderr=subprocess.STDOUT, text=True, env=env, cwd=cwd, check=False)
