"""What the machine must bring or get: Debian packages, free disk, root."""

import os
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.paths import cache
from tuneloop_localcluster.progress import Progress
from tuneloop_localcluster.shell import run
from tuneloop_localcluster.versions import PACKAGES

GIB = 1024**3
# Seen: 6 GiB of Go build and module caches while building, 0.6 GiB of programs.
BUILD_GIB = 8.0
RUN_GIB = 2.0
_APT = threading.Lock()
_POLICY = Path("/usr/sbin/policy-rc.d")


def missing_packages(names: Iterable[str]) -> list[str]:
    """The packages whose program is not there."""
    return [name for name in names if not _present(PACKAGES[name])]


def _present(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None


def install_packages(names: Iterable[str], progress: Progress) -> None:
    """Install what is missing with apt-get, after saying what."""
    with _APT:
        wanted = missing_packages(names)
        if wanted:
            _install(wanted, progress)


def _install(wanted: list[str], progress: Progress) -> None:
    require_root("installing packages")
    if shutil.which("apt-get") is None:
        raise ClusterError(f"no apt-get here: this cluster is for Debian 12; install {', '.join(wanted)} yourself")
    with progress.step(f"apt-get install {' '.join(wanted)}", announce=True):
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-q"], env=env)
        with _services_stay_off():
            run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *wanted], env=env)
    still = missing_packages(wanted)
    if still:
        raise ClusterError(f"installed {', '.join(still)}, but {', '.join(PACKAGES[n] for n in still)} is not on PATH")
    _note(wanted)


@contextmanager
def _services_stay_off() -> Iterator[None]:
    """Keep packages from starting their services (Debian's policy-rc.d): nothing runs but what we start."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def _note(installed: list[str]) -> None:
    """Remember what was installed for us, so that it can be listed for whoever wants to remove it."""
    note = cache().root / "apt-installed"
    note.parent.mkdir(parents=True, exist_ok=True)
    with note.open("a") as file:
        file.writelines(f"{name}\n" for name in installed)


def require_root(what: str) -> None:
    """Raise unless this process is root."""
    if os.geteuid() != 0:
        raise ClusterError(f"{what} needs root: run it with sudo")


def require_disk(folder: Path, gib: float, what: str) -> None:
    """Raise unless the file system under `folder` (made if it is not there) has `gib` GiB free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / GIB
    if free < gib:
        raise ClusterError(
            f"{what} needs {gib:.0f} GiB free under {folder}, there are {free:.1f}: free some space, or set "
            "TUNELOOP_CACHE to a folder on a larger disk"
        )


def require_free_port(address: str, port: int) -> None:
    """Raise if somebody else listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise ClusterError(
                f"port {address}:{port} is taken ({error.strerror}): see `ss -ltnp`, and end it"
            ) from error
