"""Daemons: started detached in sessions of their own, found again by pid file, ended by pid.

A pid file holds the pid and the kernel's start time of that process, so that a number which the kernel has given
to somebody else since, or a file that outlived a reboot, never names a stranger. Nothing is ever ended by name.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop_localcluster.errors import ClusterError

_START_TIME_FIELD = 21  # proc(5): field 22 of /proc/PID/stat, counted from 0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LISTEN = "0A"  # proc(5): the state of a listening socket


@dataclass(frozen=True)
class Identity:
    """What makes a process itself: its number, its start in clock ticks since boot, and the boot."""

    pid: int
    start: int
    boot: str

    def encode(self) -> str:
        """The text of a pid file."""
        return f"{self.pid} {self.start} {self.boot}\n"


def decode(text: str) -> Identity | None:
    """Read a pid file's text; None if it is not one."""
    parts = text.split()
    if len(parts) != 3 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    return Identity(int(parts[0]), int(parts[1]), parts[2])


def start_time(stat: str) -> tuple[str, int]:
    """State letter and start time out of a /proc/PID/stat line, whose second field may hold spaces and parentheses."""
    rest = stat[stat.rindex(")") + 2 :].split()
    return rest[0], int(rest[_START_TIME_FIELD - 2])


def identify(pid: int) -> Identity | None:
    """The identity of a running process; None if there is none, or only its corpse."""
    try:
        state, start = start_time(Path(f"/proc/{pid}/stat").read_text())
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else Identity(pid, start, _BOOT_ID.read_text().strip())


class Daemon:
    """One named background process of a variant."""

    def __init__(self, name: str, pids: Path, logs: Path) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self._pid_file = pids / f"{name}.pid"

    @property
    def pid(self) -> int | None:
        """Its pid while it runs, else None."""
        try:
            known = decode(self._pid_file.read_text())
        except OSError:
            return None
        return known.pid if known and identify(known.pid) == known else None

    def start(self, command: Sequence[str | Path], *, cgroups: Sequence[Path] = ()) -> None:
        """Start it detached, in a session of its own and in the given cgroups, unless it runs already."""
        if self.pid is not None:
            return
        if shutil.which(command[0]) is None:
            raise ClusterError(f"{self.name} cannot start: there is no program {command[0]}")
        self._pid_file.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        pid = _spawn([str(part) for part in command], self.log, cgroups)
        identity = identify(pid)
        if identity is None:
            raise ClusterError(f"{self.name} ended at once: {self.last_words()}")
        self._pid_file.write_text(identity.encode())

    def listens(self, port: int) -> bool:
        """Whether somebody listens on this TCP port (IPv4) in the network namespace where it runs."""
        try:
            lines = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        except OSError:
            return False
        sockets = [line.split() for line in lines]
        return any(int(words[1].rpartition(":")[2], 16) == port and words[3] == _LISTEN for words in sockets)

    def last_words(self, lines: int = 15) -> str:
        """The end of its log, for error messages."""
        try:
            tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        except OSError:
            tail = []
        return f"see {self.log}\n" + "\n".join(tail)

    def stop(self, patience: float = 10.0) -> None:
        """End it: SIGTERM, and SIGKILL if it is still there after `patience` seconds."""
        pid = self.pid
        if pid is not None:
            end([pid], patience)
        self._pid_file.unlink(missing_ok=True)


def _spawn(command: list[str], log: Path, cgroups: Sequence[Path]) -> int:
    """Start a program through a short-lived shell, so that it becomes a child of init and never our zombie."""
    joins = "".join(f"echo $BASHPID > {shlex.quote(str(path))}/cgroup.procs; " for path in cgroups)
    script = f'({joins}exec "$@") </dev/null >>"$0" 2>&1 & echo $!'
    words = ["bash", "-c", script, str(log), *command]
    out = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, cwd="/", start_new_session=True)
    return int(out.stdout)


def end(pids: Sequence[int], patience: float = 10.0) -> None:
    """End these processes and wait until they are gone: SIGTERM first, SIGKILL after `patience` seconds."""
    targets = {pid: identity for pid in pids if (identity := identify(pid))}
    for number, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 30.0)):
        for pid in _remaining(targets):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if _wait_gone(targets, wait):
            return
    raise ClusterError(f"processes {_remaining(targets)} do not end after SIGKILL: see `ps -o pid,stat,wchan,cmd`")


def _remaining(targets: dict[int, Identity]) -> list[int]:
    return [pid for pid, identity in targets.items() if identify(pid) == identity]


def _wait_gone(targets: dict[int, Identity], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _remaining(targets):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
