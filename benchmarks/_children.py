"""Processes that a benchmark starts, and that end with it: with what they started in turn, also at SIGTERM.

Each leads a session of its own, so that one signal reaches it and its children: ``uv run`` starts a Python, vLLM starts
engines. Never leaves one behind, but where the benchmark itself is ended by SIGKILL.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL


def end_in_order() -> None:
    """From now on SIGTERM and SIGHUP leave every ``with`` and ``finally`` on the way, as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once: what it began is not interrupted by the next
    sys.exit(128 + number)


@contextlib.contextmanager
def running(command: list[str], **more: Any) -> Iterator["subprocess.Popen[Any]"]:
    """A process until left; ``more`` as ``subprocess.Popen`` takes it."""
    process: subprocess.Popen[Any] = subprocess.Popen(command, start_new_session=True, **more)
    try:
        yield process
    finally:
        _end(process)


def run(
    command: list[str], *, check: bool, timeout: float | None = None, sent: bytes | None = None, **more: Any
) -> "subprocess.CompletedProcess[Any]":
    """As ``subprocess.run``, for which an interruption ends the process alone; ``sent`` is its input."""
    with running(command, stdin=subprocess.PIPE if sent is not None else None, **more) as process:
        out, errors = process.communicate(sent, timeout)
    done = subprocess.CompletedProcess(command, process.returncode, out, errors)
    if check:
        done.check_returncode()
    return done


def _end(process: "subprocess.Popen[Any]") -> None:
    """SIGTERM, then SIGKILL, for all of its session that is left; told to end while it waits, at once."""
    try:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    finally:
        _signal(process, signal.SIGKILL)  # one that it started may not have heard of its end
        process.wait()


def _signal(process: "subprocess.Popen[Any]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
