"""A gateway's internal port, played on this machine's own address: it pushes the load that a test tells it.

Its EndpointSlice cannot name a loopback address (the API server refuses those), so the machine's own is used.
"""

import json
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from operator_world import World
from ports import alone_on, own_address

PORT = 9090
HEARTBEAT_SECONDS = 2.0


class FakeGateway:
    """Answers /internal/load?watch=true as the contract has it: a line at once, and one for each ``say``."""

    def __init__(self, world: World, name: str = "chat") -> None:
        self._world, self._name, self._ip = world, name, own_address()
        self._load: dict[str, Any] = {}
        self._news = threading.Condition()
        self._number = 0
        self._closed = False
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                seen = -1
                while not fake._closed:
                    seen, line = fake._line(seen)
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    self.wfile.flush()

            def log_message(self, *_: Any) -> None:
                """Silence."""

        self._alone = ExitStack()
        self._alone.enter_context(alone_on(PORT))
        self._http = ThreadingHTTPServer((self._ip, PORT), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def say(self, **load: int) -> None:
        """From now on this is the load: ongoing, queued, requests."""
        with self._news:
            self._load, self._number = load, self._number + 1
            self._news.notify_all()

    def _line(self, seen: int) -> tuple[int, bytes]:
        with self._news:
            self._news.wait_for(lambda: self._number != seen or self._closed, HEARTBEAT_SECONDS)
            each = {"namespace": self._world.namespace, "name": self._name, **self._load}
            told = {"instance": "gateway-0", "started": "2026-01-01T00:00:00Z", "deployments": [each]}
            return self._number, json.dumps(told).encode() + b"\n"

    def __enter__(self) -> Self:
        self._thread.start()
        self._world.api.create(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": "tuneloop-gateway-x",
                    "namespace": self._world.namespace,
                    "labels": {"kubernetes.io/service-name": "tuneloop-gateway"},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": [self._ip]}],
            }
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._alone.close()
        self._thread.join()
