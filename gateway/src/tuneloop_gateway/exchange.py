"""One request's way to a server pod and its answer's way back, piece by piece as it comes.

Called from the connection's own callbacks, so that a chunk costs no task switch. A stream is passed on as it arrives;
anything else is short and is collected, so that a server that breaks half-way gets the client a clean error. Never
chooses the endpoint; that is the proxy's.
"""

import asyncio
import time
from enum import Enum
from typing import Final

import orjson

from tuneloop_gateway import errors
from tuneloop_gateway.body import Asked
from tuneloop_gateway.config import Limits
from tuneloop_gateway.errors import Reply
from tuneloop_gateway.hold import tell
from tuneloop_gateway.http_client import ClientConnection, Endpoint
from tuneloop_gateway.http_messages import Head, Request
from tuneloop_gateway.http_server import ServerConnection
from tuneloop_gateway.measure import Meter
from tuneloop_gateway.sse import EventReader, usage_of

COLLECT_LIMIT: Final = 4 * 1024 * 1024  # bytes of an answer that is not streamed; more is passed on as it comes
PASSED_HEADERS: Final = (b"cache-control", b"retry-after", b"retry-after-ms", b"x-should-retry")
CLIENT_LEFT: Final = "499"
ELSEWHERE: Final = (404, 502, 503)  # what another server may answer better


class Outcome(Enum):
    """How an attempt ended."""

    ANSWERED = "answered"  # the client has an answer, good or bad
    STALE = "stale"  # a kept connection was dead: nothing was processed, another connection may do
    UNREACHABLE = "unreachable"  # no connection could be made
    LOST = "lost"  # the connection broke, or a stream's head did not come, before the first byte of an answer
    REFUSED = "refused"  # 502, 503 or 404: not this server, perhaps another


class Exchange:
    """The receiver of a server's answer to one request."""

    def __init__(self, request: Request, client: ServerConnection, meter: Meter, limits: Limits, asked: Asked) -> None:
        self._request = request
        self._streamed = asked.stream
        self._client = client
        self.meter = meter
        self._limits = limits
        self._drop_usage = not asked.wants_usage
        self._reader: EventReader | None = None
        self._status = 0
        self._headers: tuple[tuple[bytes, bytes], ...] = ()
        self._type = b"application/json"
        self._parts: list[bytes] = []
        self._collected = 0
        self._passing = False  # an answer that is not a stream, but too long to collect
        self._paused = False
        self._reused = False
        self._upstream: ClientConnection | None = None
        self._endpoint: Endpoint | None = None
        self._done: asyncio.Future[Outcome] | None = None
        self._active = 0.0
        self.code = "500"  # what the client got
        self.failure = ""  # why it is not what it should be: connect, broken, silent, refused
        self.why = ""
        self.replica = b""  # host and port of the last attempt
        self.withheld: Reply | None = None  # what the client gets if no other server answers better

    # ---- for the proxy ----

    async def attempt(self, endpoint: Endpoint, connection: ClientConnection, data: bytes) -> Outcome:
        """Send the request and pass the answer on; cancelled when the client leaves, and the server is told.

        An answer that may be better elsewhere is withheld, and nothing of it reaches the client.
        """
        self._begin_again()
        self._endpoint, self._upstream, self.replica = endpoint, connection, endpoint.host
        self._reused = connection.used > 0
        self._done = asyncio.get_running_loop().create_future()
        self._active = time.monotonic()
        self._client.on_pause = self._pause
        connection.send(data, self)
        try:
            return await self._done
        except asyncio.CancelledError:
            connection.abort()
            raise
        finally:
            self._client.on_pause = None
            self._upstream = None

    def _begin_again(self) -> None:
        self._status, self._headers, self._collected = 0, (), 0
        self._parts.clear()
        self.failure = self.why = ""
        self.withheld = None

    @property
    def lacks_model(self) -> bool:
        """Whether the server answered that it does not know the model."""
        return self._status == 404

    @property
    def client(self) -> ServerConnection:
        """The client's connection."""
        return self._client

    @property
    def identity(self) -> bytes:
        """The request's id, as the client knows it."""
        return self._request.id

    @property
    def failed(self) -> bool:
        """Whether the client got less than it should, also where its status said 200 before that was known."""
        return bool(self.failure) or self.code >= "500"

    @property
    def reached_nobody(self) -> bool:
        """Whether no server got the request, on the last attempt or before."""
        return self.failure == "connect" and self.withheld is None

    def check_silence(self, now: float) -> None:
        """Give up a server that says nothing for too long, unless it is the client that does not read."""
        limit = self._patience()
        if self._upstream is None or self._paused or now - self._active <= limit:
            return None
        self._upstream.abort()
        why = f"silent for {limit:.0f} s"
        if self._status or not self._streamed:
            return self._fail("silent", why, errors.upstream_timeout(limit))
        self.failure, self.why, self.withheld = "silent", why, errors.stream_timeout(limit, self._request.id)
        return self._finish(Outcome.LOST)

    def _patience(self) -> float:
        """Seconds; a stream's head comes from vLLM before its first token, another answer only when it is whole."""
        if self._status:
            return self._limits.silence_seconds
        return self._limits.stream_seconds if self._streamed else self._limits.response_seconds

    # ---- what the server sends ----

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Decide how the answer is passed on."""
        self._active = time.monotonic()
        self._status = status
        self._type = headers.get(b"content-type", self._type)
        self._headers = tuple((name, headers[name]) for name in PASSED_HEADERS if name in headers)
        if status < 500 and self._endpoint is not None:
            self._endpoint.answered()
        if status == 200 and self._type.startswith(b"text/event-stream"):
            self._reader = EventReader(self._drop_usage)
            self._begin_stream()

    def on_data(self, data: bytes) -> None:
        """The hot path: one call a chunk."""
        self._active = now = time.monotonic()
        reader = self._reader
        if reader is None:
            return self._collect(data)
        passed, outputs = reader.feed(data)
        if outputs:
            self.meter.output(outputs, now)
        if passed:
            self._client.send(passed)
        return None

    def on_end(self) -> None:
        """The answer is whole."""
        outcome = Outcome.ANSWERED
        if self._reader is not None:
            self._end_stream(self._reader)
        elif self._passing:
            self.code = str(self._status)
            self._client.end_stream()
        else:
            outcome = self._reply_collected()
        if self._paused and self._upstream is not None:
            self._pause(False)
        if self._endpoint is not None and self._upstream is not None:
            self._endpoint.keep(self._upstream)
        self._finish(outcome)

    def on_broken(self, why: str) -> None:
        """The answer will never be whole."""
        if self._reused and not self._status:
            return self._finish(Outcome.STALE)
        reply = errors.upstream_failed(f"The model server failed: {why}.", self._request.id)
        if self._status:
            return self._fail("broken", why, reply)
        self.failure, self.why, self.withheld = "broken", why, reply
        return self._finish(Outcome.LOST)

    # ---- inner ----

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        self._active = time.monotonic()
        if self._upstream is not None:
            self._upstream.pause(paused)

    def _begin_stream(self) -> None:
        if self._client.answered:
            return  # it was held, and heartbeats were sent
        head = Head(self._status, ((b"content-type", self._type), *self._headers))
        self._client.begin_stream(self._request, head)

    def _end_stream(self, reader: EventReader) -> None:
        self.code = str(self._status)
        self.meter.usage = reader.usage
        rest = reader.rest()
        if rest:
            self._client.send(rest)
        self._client.end_stream()

    def _collect(self, data: bytes) -> None:
        if self._passing:
            return self._client.send(data)
        self._collected += len(data)
        self._parts.append(data)
        if self._collected > COLLECT_LIMIT:
            self._passing = True
            self._begin_stream()
            self._client.send(b"".join(self._parts))
            self._parts.clear()
        return None

    def _reply_collected(self) -> Outcome:
        """Answer with what was collected, or withhold it."""
        body = b"".join(self._parts)
        if self._status < 400:
            reply = Reply(self._status, body, self._headers, self._type)
            self.meter.usage = usage_of(_decoded(body))
        else:
            reply = errors.from_upstream(self._status, body, self._limits.retry_after_seconds)
            reply = Reply(reply.status, reply.body, reply.headers or self._headers, reply.content_type, reply.reason)
            if self._status in (401, 403, 404) or self._status >= 500:  # the rest is the client's own doing
                self.failure, self.why = "refused", f"status {self._status}"
        if self._status in ELSEWHERE:
            self.withheld = reply
            return Outcome.REFUSED
        self.code = str(reply.status)
        tell(self._client, self._request, reply)
        return Outcome.ANSWERED

    def _fail(self, kind: str, why: str, reply: Reply) -> None:
        self.failure, self.why = kind, why
        if self._reader is not None or self._passing:
            self.code = str(self._status)
            last = errors.stream_error_event(f"The model server failed: {why}.", self._request.id)
            self._client.break_stream(self._request, last if self._reader else b"")
        else:
            self.code = str(reply.status)
            tell(self._client, self._request, reply)
        self._finish(Outcome.ANSWERED)

    def _finish(self, outcome: Outcome) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(outcome)


def _decoded(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
