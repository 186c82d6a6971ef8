"""The internal port: metrics for Prometheus, load for the operator, health for the kubelet.

An application for ``http_server``. Reachable from inside the cluster only, so it asks for no key; it shows names and
numbers, never what anybody asked or was answered.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

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
        self._stream = LoadStream(measures, holds)
        self._pages: dict[bytes, Callable[[], Reply]] = {
            b"/metrics": lambda: Reply(200, generate_latest(registry), content_type=CONTENT_TYPE_LATEST.encode()),
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
        if request.context:
            await self._stream.serve(request, connection)
        else:
            connection.reply(request, self._pages[request.path]())

    def _readyz(self) -> Reply:
        ready = self._ready()
        return Reply(200 if ready else 503, b"ok\n" if ready else b"not ready\n", content_type=TEXT)
