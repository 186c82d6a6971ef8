"""HTTP/1.1 towards clients, on llhttp: one object a connection, one task a request, limits before memory.

Written on the protocol layer because the same work through a web framework costs three to four times the CPU a chunk
(docs/adr/0050-gateway.md). A request's body is the only thing ever held whole, and only up to the limits. Knows
nothing of models, keys or servers: those belong to the application that it calls.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from tuneloop_gateway import errors
from tuneloop_gateway.config import Limits
from tuneloop_gateway.errors import Reply
from tuneloop_gateway.http_messages import CHUNKED_END, Head, Request, reply_bytes, stream_head

LINGER_SECONDS = 2.0
LINGER_BYTES = 16 * 1024 * 1024
QUEUED_REQUESTS = 16  # pipelined ones that came in one read; more closes the connection


class Application(Protocol):
    """What answers requests."""

    def refuse(self, request: Request) -> Reply | None:
        """Look at the headers; a reply here means that the body is never read."""

    async def handle(self, request: Request, connection: "ServerConnection") -> None:
        """Answer the request on the connection, exactly once."""


class ServerState:
    """What the connections of one listener share."""

    def __init__(self, application: Application, limits: Limits) -> None:
        self.application = application
        self.limits = limits
        self.connections: set[ServerConnection] = set()
        self.buffered = 0  # bytes of request bodies held
        self.draining = False
        self.refused: Callable[[Reply], None] = lambda reply: None

    def sweep(self, now: float) -> None:
        """Close what took too long; called about once a second."""
        for connection in list(self.connections):
            connection.check_deadline(now)

    def drain(self) -> None:
        """Finish what runs, close what idles, keep nothing alive."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()


class ServerConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._limits = state.limits
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None  # the one being received
        self._queue: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._head_bytes = 0
        self._in_body = False
        self._deaf = False  # nothing more is parsed: the connection ends after the answer
        self._lingered = -1
        self._deadline = time.monotonic() + self._limits.idle_seconds
        self._chunked = True
        self.answered = False  # a status line was written for the current request
        self.on_pause: Callable[[bool], None] | None = None  # told when the client reads too slowly, and again

    # ---- transport ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or say that there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=256 * 1024)
        self._state.connections.add(self)
        if len(self._state.connections) > self._limits.connections:
            self._deaf = True
            self._transport.write(reply_bytes(errors.unavailable("Too many connections.", 1, "overloaded"), close=True))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: stop its request, give its memory back."""
        self._state.connections.discard(self)
        self._deaf = True
        for request in (self._request, *self._queue):
            self._release(request)
        self._request = None
        self._queue.clear()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._deadline = time.monotonic() + self._limits.stalled_seconds
        if self.on_pause:
            self.on_pause(True)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._deadline = float("inf") if self._task else time.monotonic() + self._limits.idle_seconds
        if self.on_pause:
            self.on_pause(False)

    def data_received(self, data: bytes) -> None:
        """Parse; what cannot be parsed is answered and ends the connection."""
        if self._deaf:
            return self._discard(len(data))
        if not self._in_body:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(errors.bad_request("This gateway does not upgrade connections."))
        except httptools.HttpParserError:
            self._refuse(errors.bad_request("The request is not valid HTTP/1.1."))
        if not self._in_body and self._head_bytes > self._limits.head_bytes and not self._deaf:
            self._refuse(errors.head_too_large(self._limits.head_bytes))
        return None

    # ---- llhttp's callbacks; none may raise ----

    def on_message_begin(self) -> None:
        """A request starts."""
        if self._deaf:
            return
        self._request = Request(received=time.monotonic())
        if self._task is None:
            self._deadline = time.monotonic() + self._limits.head_seconds

    def on_url(self, url: bytes) -> None:
        """A part of the URL."""
        if self._request is not None:
            self._request.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; of a repeated one the first counts."""
        request = self._request
        if request is not None:
            request.head_size += len(name) + len(value) + 4
            request.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """Decide on the headers alone whether the body is wanted."""
        request = self._request
        if request is None or self._deaf:
            return None
        self._in_body = True
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive()
        request.http10 = self._parser.get_http_version() == "1.0"
        reply = self._look_at(request)
        if reply is not None:
            return self._refuse(reply)
        if self._task is None:
            self._deadline = time.monotonic() + self._limits.body_seconds
        if request.headers.get(b"expect", b"").lower() == b"100-continue" and self._task is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    def on_body(self, body: bytes) -> None:
        """A part of the body, counted before it is kept."""
        request = self._request
        if request is None or self._deaf:
            return
        request.size += len(body)
        self._state.buffered += len(body)
        if request.size > self._limits.body_bytes:
            self._refuse(errors.body_too_large(self._limits.body_bytes))
        elif self._state.buffered > self._limits.buffered_bytes:
            self._refuse(errors.unavailable("The gateway holds too many requests.", 1, "overloaded"))
        else:
            request.parts.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        request, self._request = self._request, None
        self._in_body, self._head_bytes = False, 0
        if request is not None and not self._deaf:
            self._enqueue(request)

    # ---- requests, one after the other ----

    def _look_at(self, request: Request) -> Reply | None:
        if len(request.url) > self._limits.url_bytes:
            return errors.url_too_long(self._limits.url_bytes)
        if request.head_size > self._limits.head_bytes:
            return errors.head_too_large(self._limits.head_bytes)
        length = request.headers.get(b"content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            return errors.body_too_large(self._limits.body_bytes)
        return self._state.application.refuse(request)

    def _refuse(self, reply: Reply) -> None:
        """Answer without reading further; what still comes is thrown away."""
        if self._deaf:
            return
        request, self._request = self._request or Request(received=time.monotonic()), None
        self._deaf = True
        self._release(request)
        request.refusal, request.keep_alive = reply, False
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        self._queue.append(request)
        if self._task is None:
            self._deadline = float("inf")
            self._task = asyncio.get_running_loop().create_task(self._answer())
        elif len(self._queue) > QUEUED_REQUESTS:
            self._transport.abort()
        else:
            self._transport.pause_reading()

    async def _answer(self) -> None:
        while self._queue:
            request = self._queue.popleft()
            self.answered = False
            try:
                await self._answer_one(request)
            finally:
                self._release(request)  # also where the client left
            if not request.keep_alive or self._state.draining:
                self._task = None
                return self._end()
        self._task = None
        self._deadline = time.monotonic() + self._limits.idle_seconds
        if not self._transport.is_closing():
            self._transport.resume_reading()
        return None

    async def _answer_one(self, request: Request) -> None:
        if request.refusal is not None:
            self._state.refused(request.refusal)
            self.reply(request, request.refusal)
        else:
            await self._state.application.handle(request, self)

    def _release(self, request: Request | None) -> None:
        if request is not None:
            self._state.buffered -= request.size
            request.size = 0
            request.parts.clear()

    # ---- answers ----

    def reply(self, request: Request, reply: Reply) -> None:
        """A whole answer in one write."""
        self.answered = True
        self._transport.write(reply_bytes(reply, self._will_close(request), request.id, request.extra))

    def begin_stream(self, request: Request, head: Head) -> None:
        """The head of an answer whose length is not known yet."""
        self.answered = True
        self._chunked = not request.http10
        if request.http10:
            request.keep_alive = False
        self._transport.write(stream_head(head, self._chunked, self._will_close(request), request.id, request.extra))

    def send(self, data: bytes) -> None:
        """A piece of a streamed answer; never empty."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end_stream(self) -> None:
        """The streamed answer is whole."""
        if self._chunked:
            self._transport.write(CHUNKED_END)

    def break_stream(self, request: Request, last: bytes) -> None:
        """End a streamed answer that is not whole: a last word and no proper end, so nobody takes it for one."""
        if last:
            self.send(last)
        request.keep_alive = False

    def _will_close(self, request: Request) -> bool:
        return not request.keep_alive or self._state.draining

    # ---- the end ----

    def _end(self) -> None:
        """Close; where the client may still be sending, listen a little, or the answer would be lost in a reset."""
        if self._deaf and self._lingered < 0 and not self._transport.is_closing():
            self._lingered = 0
            self._deadline = time.monotonic() + LINGER_SECONDS
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()

    def _discard(self, size: int) -> None:
        if self._lingered >= 0:
            self._lingered += size
            if self._lingered > LINGER_BYTES:
                self._transport.abort()

    def check_deadline(self, now: float) -> None:
        """Close the connection if the client let a deadline pass."""
        if now < self._deadline:
            return
        if self._task is None and self._request is not None and not self._deaf:
            self._deadline = float("inf")
            self._refuse(errors.timed_out_reading())
        elif self._task is not None or self._lingered >= 0:
            self._transport.abort()
        else:
            self._transport.close()

    def close_if_idle(self) -> None:
        """Close a connection on which no request is under way."""
        if self._task is None and self._request is None and self._lingered < 0:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._task is not None
