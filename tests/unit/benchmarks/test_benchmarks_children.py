"""A benchmark leaves no process behind: not when it ends, fails or is told to end, nor what its children started."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from _children import run, running

ROOT = Path(__file__).resolve().parents[3]
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
CHILD = "sleep 300 & echo $$ $! > {file}; {then}"  # a process that starts another, as uv and vLLM do
BENCHMARK = """
import signal, sys, time
from _children import end_in_order, run, running
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in its background deaf to it
end_in_order()
command = ["bash", "-c", sys.argv[2]]
if sys.argv[1] == "run":
    run(command, check=False)
with running(command) as process:
    process.wait()
    time.sleep(300)
"""
ENDING = """
import signal, sys, time
from pathlib import Path
from _children import end_in_order, running
signal.signal(signal.SIGINT, signal.default_int_handler)
end_in_order()
with running(["bash", "-c", sys.argv[1]]):
    while not Path(sys.argv[2]).exists():
        time.sleep(0.02)
"""


def lives(pid: int) -> bool:
    """Whether it runs; what has ended and was not waited for by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def started(file: Path) -> list[int]:
    """The child and what it started, once both run."""
    assert wait_for(lambda: file.exists() and len(file.read_text().split()) == 2), "nothing was started"
    return [int(pid) for pid in file.read_text().split()]


def gone(pids: list[int]) -> bool:
    return wait_for(lambda: not any(map(lives, pids)))


def wait_for(holds: Callable[[], bool]) -> bool:
    """Whether it holds within a minute."""
    end = time.monotonic() + 60
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(
    ("way", "then"),
    [
        pytest.param("run", "wait", id="waiting for a command"),
        pytest.param("running", "wait", id="beside a process"),
        pytest.param("running", "exit 0", id="the process has ended and left another"),
    ],
)
def test_told_to_end_it_takes_everything_with_it(tmp_path: Path, number: signal.Signals, way: str, then: str) -> None:
    file = tmp_path / "pids"
    command = [sys.executable, "-c", BENCHMARK, way, CHILD.format(file=file, then=then)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as benchmark:
        try:
            pids = started(file)
            assert lives(pids[1])
            benchmark.send_signal(number)
            assert benchmark.wait(60) != 0
            assert gone(pids)
        finally:
            benchmark.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_while_it_ends_a_deaf_process_it_takes_everything_with_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    file, told = tmp_path / "pids", tmp_path / "told"
    deaf = f"trap 'touch {told}' TERM; " + CHILD.format(file=file, then="while true; do sleep 0.05; done")
    command = [sys.executable, "-c", ENDING, deaf, str(file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as benchmark:
        try:
            pids = started(file)
            assert wait_for(told.exists)
            benchmark.send_signal(number)
            assert benchmark.wait(60) != 0
            assert gone(pids)
        finally:
            benchmark.kill()


def test_left_with_an_error_it_takes_everything_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pids"

    def fail() -> None:
        with running(["bash", "-c", CHILD.format(file=file, then="wait")]):
            started(file)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - our own
        fail()
    assert gone(started(file))


def test_a_command_as_subprocess_runs_it() -> None:
    done = run(["cat"], check=True, sent=b"in and out", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"in and out")
    assert run(["false"], check=False).returncode == 1
    with pytest.raises(subprocess.CalledProcessError):
        run(["false"], check=True)
    with pytest.raises(subprocess.TimeoutExpired):
        run(["sleep", "300"], check=False, timeout=0.1)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: str(path.relative_to(ROOT / "benchmarks")))
def test_no_benchmark_starts_a_process_in_another_way(path: Path) -> None:
    text = path.read_text()
    own = re.findall(r"subprocess\.(?:run|Popen|call|check_\w+)\(.*", text)
    if path.name == "_children.py":
        return
    assert all("cluster" in each for each in own), "the local cluster's daemons stay up by design; all else ends"
    uses = re.search(r"\b(?:run|running)\(\[?\*?\w", text) and "_children" in text and "def main" in text
    assert not uses or "end_in_order()" in text, "it would leave its children at SIGTERM"
