"""A server pod's HTTP, played on a loopback address of its own: what the operator polls and pokes."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Listener(ThreadingHTTPServer):
    """With room for many clients at once: beyond five, http.server's own number, the kernel lets a connection wait for
    longer than the gateway does.
    """

    request_queue_size = 128


class FakeServer:
    """Answers /tuneloop/status and /tuneloop/adapters as the contract has it; loads at once."""

    def __init__(self, ip: str = "127.0.0.2", port: int = 8000) -> None:
        self.ip = ip
        self._adapters: list[str] = []
        self.ever: set[str] = set()  # all that it was told to load
        self.tokens: set[str] = set()  # that it was asked with
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.tokens.add(self.headers.get("Authorization", ""))
                self._answer(fake.status())

            def do_POST(self) -> None:
                fake.tokens.add(self.headers.get("Authorization", ""))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v1/chat/completions":
                    if body.get("stream"):
                        return self._stream(fake.stream(body, self.headers["X-Request-Id"]))
                    code, answer = fake.chat(body, self.headers["X-Request-Id"])
                    return self._answer(answer, code)
                fake._adapters = [f"{item['name']}@{item['digest'][7:19]}" for item in body["adapters"]]
                fake.ever.update(fake._adapters)
                return self._answer(fake.status())

            def _answer(self, body: dict[str, Any], code: int = 200) -> None:
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _stream(self, events: Iterator[dict[str, Any] | str]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for event in events:
                    text = event if isinstance(event, str) else json.dumps(event)
                    self.wfile.write(f"data: {text}\n\n".encode())
                    self.wfile.flush()

            def log_message(self, *_: Any) -> None:
                """Silence."""

        self.handler = Handler
        self._http = Listener((ip, port), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def chat(self, body: dict[str, Any], identity: str) -> tuple[int, dict[str, Any]]:
        """An answer; this one has no engine."""
        return 503, {"error": {"message": f"no engine for {body['model']} in {identity}"}}

    def stream(self, body: dict[str, Any], identity: str) -> Iterator[dict[str, Any] | str]:
        """Events of a streamed answer; this one has no engine."""
        yield {"error": {"message": f"no engine for {body['model']} in {identity}"}}
        yield "[DONE]"

    def status(self) -> dict[str, Any]:
        adapters = [{"engineName": name, "state": "Loaded"} for name in self._adapters]
        return {"ready": True, "draining": False, "model": "m", "adapters": adapters, "phases": {"imports": 1.5}}

    def loaded(self) -> list[str]:
        return list(self._adapters)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
