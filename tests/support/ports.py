"""Addresses and ports for the processes that tests start."""

import fcntl
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000


def free_port(count: int = 1) -> int:
    """The first of ``count`` ports in a row that nobody holds on loopback.

    They lie below the range from which the kernel gives ports to outgoing connections: one out of that range can be
    taken by any client on the machine before the process that it is meant for has started.
    """
    highest = int(_RANGE.read_text().split()[0]) - count
    while True:
        port = random.SystemRandom().randint(_LOWEST, highest)  # two test processes must not draw the same row
        if all(_is_free(port + place) for place in range(count)):
            return port


def own_address() -> str:
    """This machine's address as others see it, for what refuses loopback; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))
        return str(probe.getsockname()[0])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def alone_on(port: int) -> Iterator[None]:
    """Hold a port that is fixed by contract against the machine's other test processes: they wait until it is free."""
    with Path(tempfile.gettempdir(), f"tuneloop-tests-port-{port}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
