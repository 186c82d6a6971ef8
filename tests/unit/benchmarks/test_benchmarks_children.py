"""A benchmark leaves no process behind: not when it ends, fails or is told to end, nor what its children started."""

import os
import re
import signal
import subprocess
import sys
import time
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


def lives(pid: int) -> bool:
    """Whether it runs; what has ended and was not waited for by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def started(file: Path) -> list[int]:
    """The child and what it started, once both run."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if file.exists() and len(found := file.read_text().split()) == 2:
            return [int(pid) for pid in found]
        time.sleep(0.02)
    raise AssertionError("nothing was started within 60 s")


def gone(pids: list[int]) -> bool:
    end = time.monotonic() + 60
    while any(map(lives, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(lives, pids))


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
