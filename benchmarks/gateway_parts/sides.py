"""The processes of the gateway's benchmarks: the stand-in for a model server and API server, and the gateway itself.

Each is a context manager that yields a ``Side`` and never leaves a process behind.
"""

import contextlib
import hashlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from _children import running

PARTS = Path(__file__).parent
KEY = "benchmark-key"
HASH = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
TICKS = os.sysconf("SC_CLK_TCK")
CHAT = "/v1/chat/completions"
OURS = "/bench"  # the namespace of the one ModelDeployment


@dataclass
class Side:
    """One way to the upstream: its port, the processes whose CPU time counts, the path of chats."""

    name: str
    port: int
    pids: list[int]
    path: str = CHAT

    def cpu(self) -> float:
        """CPU seconds of its processes so far, user and system."""
        return sum(_cpu(pid) for pid in self.pids)

    def peak_mib(self) -> float:
        """Most memory that its processes had resident so far, MiB."""
        return sum(_peak_mib(pid) for pid in self.pids)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _peak_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def pin(pids: list[int], cpu: int) -> None:
    """Keep all threads of these processes, and those that they start later, on one core."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {cpu})


def family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait(port: int, name: str) -> None:
    """Until something listens there."""
    for _ in range(1200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"{name} did not listen on port {port} within 60 s")


@contextlib.contextmanager
def upstream(server: int = 0) -> Iterator[Side]:
    """The stand-in for a model server, which also is the gateway's API server and names ``server`` as the pod's port.

    Without ``server`` the pod is the stand-in itself.
    """
    port = free_port()
    command = [sys.executable, str(PARTS / "upstream.py"), "--port", str(port), "--key-hash", HASH]
    with running([*command, "--server", str(server or port)]) as process:
        wait(port, "the upstream")
        yield Side("direct", port, [process.pid])


@contextlib.contextmanager
def gateway(folder: Path, behind: int) -> Iterator[Side]:
    """The gateway as it runs in production, but for the kubeconfig."""
    (folder / "settings.yaml").write_text("images: {trainer: none, server: none}\n")
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{behind}"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    port = free_port()
    env = os.environ | {
        "TUNELOOP_SETTINGS": str(folder / "settings.yaml"),
        "KUBECONFIG": str(folder / "kubeconfig"),
        "TUNELOOP_GATEWAY_HOST": "127.0.0.1",
        "TUNELOOP_GATEWAY_PORT": str(port),
        "TUNELOOP_GATEWAY_INTERNAL_PORT": str(free_port()),
        "TUNELOOP_GATEWAY_LAME_SECONDS": "0",
    }
    with (
        (folder / "gateway.log").open("wb") as log,
        running([sys.executable, "-m", "tuneloop_gateway"], env=env, stdout=log, stderr=log) as process,
    ):
        wait(port, "the gateway")
        time.sleep(1)  # the first table
        yield Side("gateway", port, [process.pid], OURS + CHAT)
