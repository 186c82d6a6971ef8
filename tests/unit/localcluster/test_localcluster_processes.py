"""Pid files and daemons, with real processes that the tests start themselves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

from tuneloop_localcluster import waiting
from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.processes import Daemon, Identity, decode, end, identify, start_time


@pytest.mark.parametrize(
    ("stat", "expected"),
    [
        ("42 (sh) S 1 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 777 1000 1", ("S", 777)),
        ("42 (a) b (c)) Z 1 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 9 0 0", ("Z", 9)),
    ],
)
def test_start_time_survives_odd_names(stat: str, expected: tuple[str, int]) -> None:
    assert start_time(stat) == expected


@pytest.mark.parametrize("text", ["", "12", "12 13", "x 13 boot", "12 13 boot more", "-1 2 boot"])
def test_broken_pid_files_name_nobody(text: str) -> None:
    assert decode(text) is None


def test_identity_round_trip() -> None:
    identity = Identity(12, 345, "boot")
    assert decode(identity.encode()) == identity


def test_identify_tells_the_living_from_the_absent() -> None:
    own = identify(os.getpid())
    assert own is not None
    assert own.pid == os.getpid()
    assert identify(2**30) is None


def test_a_corpse_is_not_running() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identify(child.pid) is None
    child.wait()


def daemon(folder: Path) -> Daemon:
    return Daemon("sleeper", folder / "run", folder / "logs")


def test_daemon_lives_in_its_own_session_and_is_found_again(tmp_path: Path) -> None:
    first = daemon(tmp_path)
    first.start(["sh", "-c", "echo started; exec sleep 1000"])
    pid = first.pid
    assert pid is not None
    try:
        waiting.until("its first words", lambda: "started" in first.last_words())
        assert os.getsid(pid) != os.getsid(0)
        again = daemon(tmp_path)
        assert again.pid == pid
        again.start(["sleep", "1000"])
        assert again.pid == pid, "a running daemon is not started twice"
    finally:
        daemon(tmp_path).stop()
    assert identify(pid) is None
    assert daemon(tmp_path).pid is None


def test_daemon_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = daemon(tmp_path)
    stubborn.start(["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"])
    pid = stubborn.pid
    assert pid is not None
    stubborn.stop(patience=0.2)
    assert identify(pid) is None


def test_a_pid_file_of_another_process_is_not_believed(tmp_path: Path) -> None:
    """The number was given to somebody else: the file's start time differs, and the stranger is left alone."""
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as stranger:
        try:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "sleeper.pid").write_text(f"{stranger.pid} 1 some-boot\n")
            stale = daemon(tmp_path)
            assert stale.pid is None
            stale.stop()
            assert identify(stranger.pid) is not None
            assert not (tmp_path / "run" / "sleeper.pid").exists()
        finally:
            stranger.send_signal(signal.SIGKILL)


def test_a_daemon_joins_the_cgroups_it_is_given(tmp_path: Path) -> None:
    group = tmp_path / "with space"
    group.mkdir()
    joined = daemon(tmp_path)
    joined.start(["sleep", "1000"], cgroups=[group])
    procs = group / "cgroup.procs"
    try:
        waiting.until("the process to join", lambda: procs.exists() and procs.read_text().split() == [str(joined.pid)])
    finally:
        joined.stop()


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"sleeper cannot start: there is no program .*no-such-program"):
        daemon(tmp_path).start([tmp_path / "no-such-program"])


def test_end_of_nothing_is_fine() -> None:
    end([], patience=0)
    end([2**30], patience=0)


def test_a_daemon_that_listens_is_told_from_one_that_does_not_yet(tmp_path: Path) -> None:
    port = free_port()
    server = daemon(tmp_path)
    assert not server.listens(port), "it was never started"
    server.start([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)])
    try:
        waiting.until("it to listen", lambda: server.listens(port), daemon=server)
        assert not server.listens(free_port())
    finally:
        server.stop()
