"""Servers on loopback that speak the hub's and S3's protocols as far as a download needs, for the real clients."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_good"


@dataclass
class Repository:
    """Files by path, and who may see them."""

    files: dict[str, bytes]
    private: bool = False
    gated: bool = False


@dataclass
class HubState:
    """What the hub holds, and every request it saw: (method, path, headers)."""

    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    redirect_downloads_to: str = ""
    broken: bool = False


Answer = tuple[int, dict[str, str], bytes]


def hub_answer(state: HubState, method: str, path: str, headers: dict[str, str]) -> Answer:
    """Answer as the hub does, its X-Error-Code headers included."""
    state.requests.append((method, path, headers))
    if state.broken:
        return 503, {}, b""
    parts = unquote(urlsplit(path).path).strip("/").split("/")
    if parts[0] == "api":
        repository, rest = _find(state, parts[1], "/".join(parts[2:4])), parts[4:]
        return _guarded(repository, headers) or _info(repository, "/".join(parts[2:4]), rest)
    kind = "datasets" if parts[0] == "datasets" else "models"
    parts = parts[1:] if kind == "datasets" else parts
    repository = _find(state, kind, "/".join(parts[:2]))
    return _guarded(repository, headers) or _file(state, repository, "/".join(parts[4:]))


def _find(state: HubState, kind: str, name: str) -> Repository | None:
    return (state.models if kind == "models" else state.datasets).get(name)


def _guarded(repository: Repository | None, headers: dict[str, str]) -> Answer | None:
    token = headers.get("authorization", "").removeprefix("Bearer ")
    if token and token != TOKEN:
        return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
    if repository is None or (repository.private and not token):
        return (404, {"X-Error-Code": "RepoNotFound"}, b"") if token else (401, {}, b"")
    if repository.gated:
        return 403, {"X-Error-Code": "GatedRepo"}, b""
    return None


def _info(repository: Repository | None, name: str, rest: list[str]) -> Answer:
    assert repository is not None
    if rest[:1] == ["revision"] and rest[1] not in ("main", "v1", COMMIT):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    siblings = [{"rfilename": path, "size": len(data)} for path, data in repository.files.items()]
    body = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
    return 200, {"Content-Type": "application/json"}, json.dumps({**body, "private": False}).encode()


def _file(state: HubState, repository: Repository | None, path: str) -> Answer:
    assert repository is not None
    data = repository.files[path]
    etag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
    if state.redirect_downloads_to:
        place = {
            "Location": state.redirect_downloads_to,
            "X-Linked-Size": str(len(data)),
            "X-Linked-ETag": etag["ETag"],
        }
        return 302, {**etag, **place}, b""
    return 200, etag, data


@contextmanager
def serving(answer: Callable[[str, str, dict[str, str]], Answer]) -> Iterator[str]:
    """Serve on a free port of loopback; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, fields, body = answer(self.command, self.path, headers)
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the base class's name

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def s3_answer(objects: dict[str, bytes]) -> Callable[[str, str, dict[str, str]], Answer]:
    """Answer path-style GETs; a request without a signature is refused."""

    def answer(_method: str, path: str, _headers: dict[str, str]) -> Answer:
        url = urlsplit(path)
        if "X-Amz-Signature" not in parse_qs(url.query):
            return 403, {}, b"<Error><Code>AccessDenied</Code></Error>"
        data = objects.get(unquote(url.path).strip("/"))
        return (404, {}, b"<Error><Code>NoSuchKey</Code></Error>") if data is None else (200, {}, data)

    return answer
