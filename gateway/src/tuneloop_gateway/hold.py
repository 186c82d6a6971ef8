"""Requests for a deployment without a ready replica wait here, in order, until one is there.

One bounded queue a deployment: by count, by bytes of bodies, and by time. A request leaves it when an address appears,
when its client leaves, when nothing can come (the deployment is stalled or gone), when this gateway ends, or when its
time is over. Never keeps a body of its own, and costs a request with a ready replica nothing: it never gets here.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from tuneloop_core.settings import HoldSettings
from tuneloop_gateway import errors
from tuneloop_gateway.errors import Reply
from tuneloop_gateway.http_messages import Head, Request
from tuneloop_gateway.http_server import ServerConnection
from tuneloop_gateway.measure import DeploymentKey, Measures
from tuneloop_gateway.routes import Deployment, Route

UNKNOWN_START_SECONDS: Final = 10  # what a client is told before a start was measured
STALLED_SECONDS: Final = 60  # a person must act first
OVERDUE_SHARE: Final = 0.25  # of a usual start: how long to wait once it has taken longer than that
LONGEST_SECONDS: Final = 600
EVENT_STREAM: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def retry_after(start_seconds: float, waited: float) -> int:
    """Seconds until a replica should be there, by how long the last one took to start and how long was waited."""
    if start_seconds <= 0:
        return UNKNOWN_START_SECONDS
    left = max(start_seconds - waited, start_seconds * OVERDUE_SHARE, 1.0)
    return min(LONGEST_SECONDS, math.ceil(left))


class Held:
    """One waiting request."""

    __slots__ = ("done", "since", "size")

    def __init__(self, size: int, since: float) -> None:
        self.size = size  # bytes of its body
        self.since = since  # seconds of time.monotonic
        self.done: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

    def finish(self, reply: Reply | None) -> None:
        """Let it go on (None), or answer it."""
        if not self.done.done():
            self.done.set_result(reply)


class Queue:
    """The waiting requests of one deployment, first come first."""

    def __init__(self) -> None:
        self._held: dict[Held, None] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def waited(self, now: float) -> float:
        """Seconds that the first has waited; 0 if there is none."""
        return max(0.0, now - next(iter(self._held)).since) if self._held else 0.0

    def enter(self, held: Held) -> None:
        """Take a place at the end."""
        self._held[held] = None
        self.bytes += held.size

    def leave(self, held: Held) -> None:
        """Give the place up, wherever it is."""
        del self._held[held]
        self.bytes -= held.size

    def finish(self, reply: Reply | None) -> None:
        """Let all go on, in order, or answer them all."""
        for held in self._held:
            held.finish(reply)


class Holds:
    """All queues of this process."""

    def __init__(self, settings: HoldSettings, measures: Measures) -> None:
        self._settings = settings
        self._measures = measures
        self._draining = False
        self.queues: dict[DeploymentKey, Queue] = {}
        self.watchers: set[asyncio.Event] = set()  # set as soon as a queue is no longer empty
        measures.queues = self.queues

    # ---- from the proxy ----

    async def wait(self, route: Route, request: Request, connection: ServerConnection, stream: bool) -> Reply | None:
        """Wait for a replica of the route's deployment; the answer to give instead, or None to look again."""
        deployment = route.deployment
        refusal = self._refusal(route, request.size)
        if refusal is not None:
            self._measures.hold_ended(deployment.key, refusal.reason)
            return refusal
        queue, held = self._enter(deployment.key, request)
        outcome = "left"
        try:
            reply = await self._sit(held, route, connection, request, stream)
            outcome = reply.reason if reply is not None else "released"
            return reply
        finally:
            self._measures.hold_ended(deployment.key, outcome)
            self._leave(deployment.key, queue, held)

    def look(self, find: Callable[[DeploymentKey], Route | None]) -> None:
        """The table changed: let those go on whose deployment has a replica, is gone, or cannot have one."""
        for key, queue in self.queues.items():
            route = find(key)
            if route is None or route.addresses:
                queue.finish(None)
            elif route.deployment.stalled:
                queue.finish(_stalled(route))

    def drain(self) -> None:
        """This gateway ends: another one holds, so ask there at once."""
        self._draining = True
        for queue in self.queues.values():
            queue.finish(errors.draining())

    # ---- inner ----

    def _refusal(self, route: Route, size: int) -> Reply | None:
        if self._draining:
            return errors.draining()
        if route.deployment.stalled:
            return _stalled(route)
        queue = self.queues.get(route.deployment.key)
        if queue is None:
            return None
        full = len(queue) >= self._settings.max_requests or queue.bytes + size > self._settings.max_bytes
        return errors.queue_full(route.model, len(queue), self._retry_after(route.deployment)) if full else None

    def _retry_after(self, deployment: Deployment) -> int:
        queue = self.queues.get(deployment.key)
        waited = queue.waited(time.monotonic()) if queue is not None else 0.0
        return retry_after(deployment.start_seconds, waited)

    def _enter(self, key: DeploymentKey, request: Request) -> tuple[Queue, Held]:
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = Queue()
            for watcher in self.watchers:
                watcher.set()
        held = Held(request.size, time.monotonic())
        queue.enter(held)
        return queue, held

    def _leave(self, key: DeploymentKey, queue: Queue, held: Held) -> None:
        queue.leave(held)
        if not queue and self.queues.get(key) is queue:
            del self.queues[key]

    async def _sit(
        self, held: Held, route: Route, connection: ServerConnection, request: Request, stream: bool
    ) -> Reply | None:
        """Sit until let go; the time runs from the request's arrival, however often it is held."""
        until = request.received + self._settings.max_seconds
        beat = held.since + self._settings.heartbeat_seconds if stream else math.inf
        while not held.done.done():
            now = time.monotonic()
            if now >= until:
                return errors.not_woken(route.model, now - request.received, self._retry_after(route.deployment))
            if now >= beat:
                _heartbeat(route, connection, request, now)
                beat = now + self._settings.heartbeat_seconds
            await asyncio.wait({held.done}, timeout=min(until, beat) - now)
        return held.done.result()


def _stalled(route: Route) -> Reply:
    return errors.stalled(route.model, route.deployment.stalled, STALLED_SECONDS)


def _heartbeat(route: Route, connection: ServerConnection, request: Request, now: float) -> None:
    """A comment, which every reader of server-sent events skips, so that nothing on the way takes us for dead."""
    if not connection.answered:
        connection.begin_stream(request, Head(200, EVENT_STREAM))
    waited = now - request.received
    connection.send(b": waiting for a replica of %b, %.0f s so far\n\n" % (route.model.encode(), waited))


def tell(connection: ServerConnection, request: Request, reply: Reply) -> None:
    """Answer; where heartbeats were sent the status is out already, and the error becomes the stream's only event."""
    if not connection.answered:
        return connection.reply(request, reply)
    connection.send(errors.event_of(reply))
    return connection.end_stream()
