"""The internal port: metrics for Prometheus, load for the operator, health for the kubelet.

An application for ``http_server``. Reachable from inside the cluster only, so it asks for no key; it shows names and
numbers, never what anybody asked or was answered.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tuneloop_gateway import errors
from tuneloop_gateway.errors import Reply
from tuneloop_gateway.hold import Holds
from tuneloop_gateway.http_messages import Request
from tuneloop_gateway.http_server import ServerConnection
from tuneloop_gateway.load_stream import LoadStream, load_json
from tuneloop_gateway.measure import Measures

WATCH = b"watch=true"
TEXT = b"text/plain; charset=utf-8"


class Internal:
    """Answers everything on the internal port."""

    def __init__(
        self, measures: Measures, holds: Holds, registry: CollectorRegistry, ready: Callable[[], bool]
    ) -> None:
        self._ready = ready
        self._registry = registry
        self._stream = LoadStream(measures, holds)
        self._pages: dict[bytes, Callable[[], Reply]] = {
            b"/metrics": lambda: Reply(200, b""),  # by what the asker understands, below
            b"/internal/load": lambda: Reply(200, load_json(measures)),
            b"/healthz": lambda: Reply(200, b"ok\n", content_type=TEXT),
            b"/readyz": self._readyz,
        }

    def refuse(self, request: Request) -> Reply | None:
        """Unknown paths and methods."""
        request.path, _, query = request.url.partition(b"?")
        request.context = request.path == b"/internal/load" and query == WATCH
        if request.path not in self._pages:
            return Reply(404, errors.error_body("No such path.", "invalid_request_error", "not_found"))
        return None if request.method == b"GET" else errors.wrong_method(b"GET")

    async def handle(self, request: Request, connection: ServerConnection) -> None:
        """Answer one request."""
        if request.path == b"/metrics":
            connection.reply(request, self._metrics(request.headers.get(b"accept", b"")))
        elif request.context:
            await self._stream.serve(request, connection)
        else:
            connection.reply(request, self._pages[request.path]())

    def _metrics(self, accept: bytes) -> Reply:
        """Prometheus' text, or OpenMetrics where it is asked for: only that has exemplars."""
        encode, content_type = choose_encoder(accept.decode("latin-1"))
        return Reply(200, encode(self._registry), content_type=content_type.encode())

    def _readyz(self) -> Reply:
        ready = self._ready()
        return Reply(200 if ready else 503, b"ok\n" if ready else b"not ready\n", content_type=TEXT)
