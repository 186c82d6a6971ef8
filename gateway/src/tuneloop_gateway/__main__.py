"""``python -m tuneloop_gateway``: read the settings, serve until SIGTERM, exit 0.

Exit 2 if the settings or the way to the API server are wrong, with the reason as one line of log.
"""

import asyncio
import gc
import logging
import resource
import signal
import sys

import uvloop

from tuneloop_gateway import logs
from tuneloop_gateway.cluster import find_access
from tuneloop_gateway.config import load_config
from tuneloop_gateway.gateway import Gateway

log = logging.getLogger("tuneloop_gateway")


def _raise_file_limit() -> None:
    """A stream is two sockets; the soft limit of a container is often 1,024 files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(gateway: Gateway) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await gateway.run(stop)


async def _main() -> None:
    await _serve(Gateway(load_config(), find_access()))


def main() -> int:
    """Run; returns the exit code."""
    logs.set_up()
    _raise_file_limit()
    gc.collect()
    gc.freeze()  # what was imported never dies; looking at it again and again only makes streams wait
    try:
        uvloop.run(_main())
    except (OSError, ValueError) as error:
        log.critical("the gateway cannot start", extra={"error": str(error)})
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
