"""HTTP messages as values and as bytes: what a request holds, and how answers are written.

Pure. Never parses: that is llhttp's work.
"""

import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from tuneloop_gateway.errors import Reply

CHUNKED_END: Final = b"0\r\n\r\n"
REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
ID_LIMIT: Final = 128
ID_BYTES: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")


@dataclass(frozen=True)
class Head:
    """Status and headers of a streamed answer."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]


class Request:
    """One request of a client. Header names are lower-case; of a repeated header the first counts."""

    __slots__ = (
        "context", "extra", "head_size", "headers", "http10", "id", "keep_alive", "method", "parts", "path", "received",
        "refusal", "size", "url",
    )  # fmt: skip

    def __init__(self, received: float) -> None:
        self.received = received  # seconds of time.monotonic, when its first byte was read
        self.method = b""
        self.url = b""
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.head_size = 0  # bytes of all headers
        self.size = 0  # bytes of the body so far
        self.keep_alive = True
        self.http10 = False
        self.id = b""
        self.extra = b""  # headers of the answer to it, as lines
        self.context: object = None  # the application's
        self.refusal: Reply | None = None

    def body(self) -> bytes:
        """The whole body."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)


def request_id(given: bytes | None) -> bytes:
    """The client's ``X-Request-Id`` if it is a plain one, else a new one."""
    if given and len(given) <= ID_LIMIT and ID_BYTES.issuperset(given):
        return given
    return secrets.token_hex(16).encode()


def _lines(status: int, headers: tuple[tuple[bytes, bytes], ...], close: bool, identity: bytes) -> list[bytes]:
    lines = [b"HTTP/1.1 %d %b" % (status, REASONS.get(status, b"Unknown"))]
    lines += [b"%b: %b" % header for header in headers]
    if identity:
        lines.append(b"x-request-id: " + identity)
    if close:
        lines.append(b"connection: close")
    return lines


def reply_bytes(reply: Reply, close: bool, identity: bytes = b"", extra: bytes = b"") -> bytes:
    """A whole answer; ``extra`` is more headers, as lines."""
    lines = _lines(reply.status, reply.headers, close, identity)
    lines.append(b"content-type: " + reply.content_type)
    lines.append(b"content-length: %d\r\n%b\r\n%b" % (len(reply.body), extra, reply.body))
    return b"\r\n".join(lines)


def stream_head(head: Head, chunked: bool, close: bool, identity: bytes, extra: bytes = b"") -> bytes:
    """The head of an answer of unknown length; ``extra`` is more headers, as lines."""
    lines = _lines(head.status, head.headers, close, identity)
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n" + extra + b"\r\n"


def post_bytes(path: bytes, host: bytes, token: bytes, identity: bytes, body: bytes) -> bytes:
    """A request to a server pod: written anew, so that nothing of the client's head gets there but its request id."""
    authorization = b"authorization: Bearer %b\r\n" % token if token else b""
    return (
        b"POST %b HTTP/1.1\r\nhost: %b\r\n%bcontent-type: application/json\r\naccept: */*\r\n"
        b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (path, host, authorization, identity, len(body), body)
    )
