"""Start the engine core as a fork of this process, which has imported everything already. CPU only.

vLLM spawns it on CPU, because an OpenMP runtime that has run threads does not survive a fork: the imports, nearly all
of a small model's cold start, then happen twice. Here no parallel region has run before the fork, and Intel's OpenMP,
which is preloaded where it is there, survives one anyway. What a fork inherits and must not keep is let go of here.
"""

import gc
import os
import signal
import socket
import stat
from contextlib import suppress
from pathlib import Path


def prepare_fork() -> None:
    """Make vLLM fork, and forks clean. Call once, after vLLM's configuration (which sets the method to spawn)."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    os.register_at_fork(before=gc.freeze, after_in_child=_let_go)


def _let_go() -> None:
    """In the child: the parent's signal pipe and connections are the parent's.

    A connection stays open for its client as long as one process holds it, so a client would wait for answers on a
    connection that the server has closed.
    """
    signal.set_wakeup_fd(-1)
    for name in [entry.name for entry in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError):
            if _is_network_socket(int(name)):
                os.close(int(name))


def _is_network_socket(number: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        return False
    with socket.socket(fileno=os.dup(number)) as found:
        return found.family in (socket.AF_INET, socket.AF_INET6)
