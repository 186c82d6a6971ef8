"""``/internal/load?watch=true``: the load as lines of JSON, one ``GatewayLoad`` each, for as long as somebody reads.

The first comes at once; the next at once when a deployment's queue is no longer empty, for a sleeping one must be
woken; else at most one a second, when something changed, and one every ten seconds in any case. Costs a request
nothing: what changed is looked up here, once a second.
"""

import asyncio
import contextlib
import time

import orjson

from tuneloop_gateway.hold import Holds
from tuneloop_gateway.http_messages import Head, Request
from tuneloop_gateway.http_server import ServerConnection
from tuneloop_gateway.load import gateway_load
from tuneloop_gateway.measure import Measures

PACE_SECONDS = 1.0
HEARTBEAT_SECONDS = 10.0
LEAST_SECONDS = 0.1  # between two lines, however often a queue fills and empties
HEAD = Head(200, ((b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")))


def load_json(measures: Measures) -> bytes:
    """The load of this moment."""
    return orjson.dumps(gateway_load(measures).model_dump(by_alias=True))


class LoadStream:
    """Serves every reader by itself."""

    def __init__(self, measures: Measures, holds: Holds) -> None:
        self._measures = measures
        self._holds = holds

    async def serve(self, request: Request, connection: ServerConnection) -> None:
        """Send lines until the reader leaves, which cancels this."""
        filled = asyncio.Event()
        self._holds.watchers.add(filled)
        connection.begin_stream(request, HEAD)
        try:
            while True:
                seen = self._seen()
                connection.send(load_json(self._measures) + b"\n")
                await asyncio.sleep(LEAST_SECONDS)
                await self._next(filled, seen)
        finally:
            self._holds.watchers.discard(filled)

    async def _next(self, filled: asyncio.Event, seen: object) -> None:
        """Return when the next line is due."""
        until = time.monotonic() + HEARTBEAT_SECONDS
        while (now := time.monotonic()) < until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(PACE_SECONDS, until - now)):
                    await filled.wait()
                    return filled.clear()
            if self._seen() != seen:
                return None
        return None

    def _seen(self) -> object:
        """What is equal as long as no request came, ended, or waits."""
        now = time.monotonic()
        series = {key: (each.ongoing, sum(each.codes.values())) for key, each in self._measures.series.items()}
        return series, {key: (len(queue), int(queue.waited(now))) for key, queue in self._holds.queues.items()}
