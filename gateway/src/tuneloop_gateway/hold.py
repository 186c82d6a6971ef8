"""Requests for a deployment whose replicas are absent or all busy wait here, fairly by key, until one has room.

One bounded queue a deployment: by count, by bytes of bodies, and by time. A request leaves it when a replica has room,
when its client leaves, when nothing can come (the deployment is stalled or gone), when this gateway ends, when its time
is over, or when the queue is full and its key has the most in it. Never keeps a body of its own, and costs a request
that finds room a look at two numbers.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tuneloop_core.settings import HoldSettings
from tuneloop_gateway import errors
from tuneloop_gateway.errors import Reply
from tuneloop_gateway.fair import FairQueue
from tuneloop_gateway.http_messages import Head, Request
from tuneloop_gateway.http_server import ServerConnection
from tuneloop_gateway.measure import DeploymentKey, Measures
from tuneloop_gateway.routes import Route
from tuneloop_gateway.turns import Turns

UNKNOWN_START_SECONDS: Final = 10  # what a client is told before a start was measured
BUSY_SECONDS: Final = 2  # what a client is told where replicas are there, and busy
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

    __slots__ = ("cost", "done", "key", "since", "size")

    def __init__(self, size: int, since: float, key: str = "", cost: int = 1) -> None:
        self.size = size  # bytes of its body
        self.since = since  # seconds of time.monotonic
        self.key = key  # the name of the key that asks
        self.cost = cost  # tokens, estimated
        self.done: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

    def finish(self, reply: Reply | None) -> None:
        """Let it go on (None), or answer it."""
        if not self.done.done():
            self.done.set_result(reply)


class Queue:
    """The waiting requests of one deployment: first come first for each key, and the keys take turns."""

    def __init__(self) -> None:
        self._held: dict[Held, None] = {}  # in order of arrival, until they are gone
        self._turns: FairQueue[Held] = FairQueue()  # those that were not told anything yet
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def waited(self, now: float) -> float:
        """Seconds that the first has waited; 0 if there is none."""
        return max(0.0, now - next(iter(self._held)).since) if self._held else 0.0

    def enter(self, held: Held) -> None:
        """Take a place at the end of its key's line."""
        self._held[held] = None
        self._turns.push(held.key, held.cost, held)
        self.bytes += held.size

    def leave(self, held: Held) -> None:
        """Give the place up, wherever it is."""
        del self._held[held]
        self.bytes -= held.size
        if not held.done.done():
            self._turns.remove(held.key, held)

    @property
    def waiting(self) -> int:
        """How many were not told anything yet."""
        return len(self._turns)

    def next(self) -> Held:
        """Let the one go on whose turn it is."""
        held = self._turns.pop()
        held.finish(None)
        return held

    def displace(self, key: str, reply: Reply) -> bool:
        """Answer the newest of the key that waits with the most, so that this one has room; False if it has as many."""
        held = self._turns.displace(key)
        if held is not None:
            held.finish(reply)
        return held is not None

    def finish(self, reply: Reply) -> None:
        """Answer them all."""
        while self._turns:
            self._turns.pop().finish(reply)


class Holds:
    """All queues of this process."""

    def __init__(self, settings: HoldSettings, measures: Measures) -> None:
        self._settings = settings
        self._measures = measures
        self._draining = False
        self._turns = Turns()
        self.queues: dict[DeploymentKey, Queue] = {}
        self.watchers: set[asyncio.Event] = set()  # set as soon as a queue is no longer empty
        measures.queues = self.queues

    # ---- from the proxy ----

    def begin(self, route: Route) -> bool:
        """The hot path: take a place with a replica, unless there is none or others wait for it."""
        if not route.addresses:
            return False
        queue = self.queues.get(route.deployment.key) if self.queues else None
        return not (queue is not None and queue.waiting) and self._turns.begin(route.deployment.key)

    def end(self, key: DeploymentKey, *, unused: bool = False) -> None:
        """Give a place back; the next one takes it, unless it was of no use because no address was found."""
        self._turns.end(key)
        queue = self.queues.get(key) if self.queues and not unused else None
        if queue is not None:
            self._let_go(key, queue)

    async def wait(self, route: Route, stay: "Stay") -> Reply | None:
        """Wait for a place; the answer to give instead, or None once ``stay.place`` has one."""
        key, request = route.deployment.key, stay.request
        refusal = self._refusal(route, request.size, stay.key)
        if refusal is not None:
            self._measures.hold_ended(key, refusal.reason)
            return refusal
        queue, held = self._enter(key, Held(request.size, time.monotonic(), stay.key, stay.cost))
        if route.addresses:
            self._let_go(key, queue)
        outcome = "left"
        try:
            reply = await self._sit(held, route, stay)
            outcome = reply.reason if reply is not None else "released"
            stay.place.key = None if reply is not None else key
            return reply
        finally:
            self._measures.hold_ended(key, outcome)
            self._leave(key, queue, held)
            if outcome == "left" and held.done.done() and held.done.result() is None:
                self.end(key)  # its turn came as its client left

    def look(self, find: Callable[[DeploymentKey], Route | None], room: Mapping[DeploymentKey, int]) -> None:
        """The table changed: let those go on whose deployment has a replica, is gone, or cannot have one."""
        self._turns.set_room(room)
        for key, queue in self.queues.items():
            route = find(key)
            if route is None:
                while queue.waiting:
                    self._turns.begin(key, anyway=True)
                    queue.next()
            elif room.get(key):
                self._let_go(key, queue)
            elif route.deployment.stalled:
                queue.finish(_stalled(route))

    def sweep(self) -> None:
        """Look whether anybody waits while there is room; called about once a second."""
        for key, queue in self.queues.items():
            self._let_go(key, queue)

    def drain(self) -> None:
        """This gateway ends: another one holds, so ask there at once."""
        self._draining = True
        for queue in self.queues.values():
            queue.finish(errors.draining())

    # ---- inner ----

    def _let_go(self, key: DeploymentKey, queue: Queue) -> None:
        while queue.waiting and self._turns.begin(key):
            queue.next()

    def _refusal(self, route: Route, size: int, who: str) -> Reply | None:
        if self._draining:
            return errors.draining()
        if route.deployment.stalled and not route.addresses:
            return _stalled(route)
        queue = self.queues.get(route.deployment.key)
        if queue is None:
            return None
        full = errors.queue_full(route.model, queue.waiting, self._retry_after(route), busy=bool(route.addresses))
        if queue.bytes + size > self._settings.max_bytes:
            return full
        return full if queue.waiting >= self._settings.max_requests and not queue.displace(who, full) else None

    def _retry_after(self, route: Route) -> int:
        if route.addresses:
            return BUSY_SECONDS
        deployment = route.deployment
        queue = self.queues.get(deployment.key)
        waited = queue.waited(time.monotonic()) if queue is not None else 0.0
        return retry_after(deployment.start_seconds, waited)

    def _enter(self, key: DeploymentKey, held: Held) -> tuple[Queue, Held]:
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = Queue()
            for watcher in self.watchers:
                watcher.set()
        queue.enter(held)
        return queue, held

    def _leave(self, key: DeploymentKey, queue: Queue, held: Held) -> None:
        queue.leave(held)
        if not queue and self.queues.get(key) is queue:
            del self.queues[key]

    async def _sit(self, held: Held, route: Route, stay: "Stay") -> Reply | None:
        """Sit until let go; the time runs from the request's arrival, however often it is held."""
        request = stay.request
        until = request.received + self._settings.max_seconds
        beat = held.since + self._settings.heartbeat_seconds if stay.stream else math.inf
        while not held.done.done():
            now = time.monotonic()
            if now >= until:
                busy, waited = bool(route.addresses), now - request.received
                return errors.not_woken(route.model, waited, self._retry_after(route), busy)
            if now >= beat:
                _heartbeat(route, stay.connection, request, now)
                beat = now + self._settings.heartbeat_seconds
            await asyncio.wait({held.done}, timeout=min(until, beat) - now)
        return held.done.result()


class Place:
    """One request's place with the replicas of a deployment, or none."""

    __slots__ = ("_holds", "key")

    def __init__(self, holds: Holds) -> None:
        self._holds = holds
        self.key: DeploymentKey | None = None

    def take(self, route: Route) -> bool:
        """Take one without waiting, if nobody waits for it."""
        if self._holds.begin(route):
            self.key = route.deployment.key
        return self.key is not None

    def give(self, *, unused: bool = False) -> None:
        """Give it back, if there is one."""
        if self.key is not None:
            key, self.key = self.key, None
            self._holds.end(key, unused=unused)


@dataclass(frozen=True)
class Stay:
    """A request that has to wait, whoever it is for."""

    request: Request
    connection: ServerConnection
    stream: bool
    key: str  # the name of the key that asks
    cost: int  # tokens, estimated
    place: Place


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
