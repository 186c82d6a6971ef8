"""HTTP/1.1 towards server pods: kept connections, one answer at a time, handed on in callbacks as it comes.

No task wakes for a chunk: what llhttp finds in a read goes to the receiver within the same call. Never retries and
never looks into a body; both are the proxy's affair.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from tuneloop_gateway.affinity import hash64
from tuneloop_gateway.config import Limits
from tuneloop_gateway.outlier import Health
from tuneloop_gateway.routes import Address

log = logging.getLogger(__name__)

HEAD_LIMIT = 64 * 1024  # bytes of a server's answer before its body; more is no model server


class Receiver(Protocol):
    """Whoever sent the request."""

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Status and headers came."""

    def on_data(self, data: bytes) -> None:
        """A piece of the body came."""

    def on_end(self) -> None:
        """The answer is whole."""

    def on_broken(self, why: str) -> None:
        """It will never be."""


class ClientConnection(asyncio.Protocol):
    """One connection to a server pod."""

    def __init__(self, lost: Callable[["ClientConnection"], None]) -> None:
        self._lost = lost
        self._parser = httptools.HttpResponseParser(self)
        self._receiver: Receiver | None = None
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._until_close = False  # the body ends with the connection
        self.used = 0  # requests sent so far
        self.idle_since = 0.0  # seconds of time.monotonic

    # ---- transport ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready to send."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse; callbacks below do the rest."""
        if self._receiver is None:
            return self._transport.abort()  # nobody asked: no answer can be trusted on this connection any more
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(f"it did not answer in HTTP ({type(error).__name__})")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed."""
        self._lost(self)
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self._until_close and exc is None:
            receiver.on_end()
        else:
            receiver.on_broken("it closed the connection" if exc is None else f"the connection broke: {exc}")

    # ---- llhttp's callbacks ----

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes <= HEAD_LIMIT:
            self._headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """Hand the head on; a 1xx is no answer yet."""
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, {}
        if status < 200 or self._receiver is None:
            return None
        if self._head_bytes > HEAD_LIMIT:
            return self._break("its headers are too large")
        self._until_close = b"content-length" not in headers and b"transfer-encoding" not in headers
        self._receiver.on_head(status, headers)
        return None

    def on_body(self, body: bytes) -> None:
        """Hand a piece on."""
        if self._receiver is not None:
            self._receiver.on_data(body)

    def on_message_complete(self) -> None:
        """The answer is whole; the connection is free again if the server keeps it."""
        if self._parser.get_status_code() < 200:
            return
        receiver, self._receiver = self._receiver, None
        self._head_bytes = 0
        if not self._parser.should_keep_alive():
            self._transport.close()
        if receiver is not None:
            receiver.on_end()

    # ---- for the proxy ----

    def send(self, data: bytes, receiver: Receiver) -> None:
        """Send one request."""
        self._receiver = receiver
        self._until_close = False
        self.used += 1
        self._transport.write(data)

    def pause(self, paused: bool) -> None:
        """Stop or go on reading: the client's pace is the server's pace."""
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection; the server takes that as "nobody waits for this answer"."""
        self._receiver = None
        self._transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        self._transport.close()

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._receiver is None and not self._transport.is_closing()

    def _break(self, why: str) -> None:
        receiver, self._receiver = self._receiver, None
        self._transport.abort()
        if receiver is not None:
            receiver.on_broken(why)


class Endpoint:
    """One server pod: its kept connections, and what balancing needs to know of it."""

    def __init__(self, address: Address, limits: Limits) -> None:
        self.address = address
        self.host = _host_header(address)
        self.seed = hash64(self.host)
        self.ongoing = 0
        self.health = Health()
        self._limits = limits
        self._idle: list[ClientConnection] = []
        self._closed = False

    def kept(self) -> ClientConnection | None:
        """A kept connection, the one used last; None if there is none that is young enough."""
        oldest = time.monotonic() - self._limits.pool_idle_seconds
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def connect(self) -> ClientConnection:
        """A new connection.

        Raises:
            OSError, TimeoutError: it could not be made within ``connect_seconds``.
        """
        loop = asyncio.get_running_loop()
        making = loop.create_connection(lambda: ClientConnection(self._forget), *self.address)
        async with asyncio.timeout(self._limits.connect_seconds):
            _, connection = await making
        return connection

    def keep(self, connection: ClientConnection) -> None:
        """Take a connection back after a whole answer."""
        if self._closed:
            connection.close()
        elif connection.usable:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)

    def answered(self) -> None:
        """The head of a good answer came: if it was ejected, it is back."""
        if self.health.until and self.health.answered():
            log.info("a model server is back", extra={"replica": self.host.decode()})

    def sweep(self, now: float) -> None:
        """Close connections that idled too long."""
        old = [each for each in self._idle if each.idle_since <= now - self._limits.pool_idle_seconds]
        for connection in old:
            connection.close()
            self._forget(connection)

    def close(self) -> None:
        """Close all kept connections, and those that come back later."""
        self._closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _forget(self, connection: ClientConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


class Endpoints:
    """All pods of the routing table; they outlive its rebuilding."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[Address, Endpoint] = {}

    def of(self, addresses: tuple[Address, ...]) -> list[Endpoint]:
        """The endpoints at these addresses, made when first seen."""
        return [self._known.get(address) or self._make(address) for address in addresses]

    def forget_all_but(self, addresses: set[Address]) -> None:
        """Close what is no longer routed to; answers under way finish on their own connections."""
        for address in self._known.keys() - addresses:
            self._known.pop(address).close()

    def sweep(self, now: float) -> None:
        """Close connections that idled too long."""
        for endpoint in self._known.values():
            endpoint.sweep(now)

    def close(self) -> None:
        """Close all kept connections."""
        self.forget_all_but(set())

    def _make(self, address: Address) -> Endpoint:
        endpoint = self._known[address] = Endpoint(address, self._limits)
        return endpoint


def _host_header(address: Address) -> bytes:
    host, port = address
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
