"""A hub that takes uploads, as far as huggingface_hub's own client asks: repositories, preupload, LFS, atomic commits.

Speaks what ``huggingface_hub`` sends (``_commit_api.py``, ``lfs.py``): a commit names its files, large ones by the
digest of an object that must have arrived before.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_writer"
READER = "hf_reader"


@dataclass
class UploadHub:
    """Repositories with their commits, and the objects of LFS."""

    repositories: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    broken: str = ""  # requests whose path holds this get 500

    def files(self, name: str) -> dict[str, bytes]:
        """What a reader sees on the main branch."""
        commits = self.repositories[name]
        return commits[-1] if commits else {}

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        self.requests.append((method, path))
        if self.broken and self.broken in path:
            return 500, {}, {"error": "the hub is broken"}
        if path.startswith("/objects/"):
            return self._object(path.removeprefix("/objects/"), body)
        if token not in (TOKEN, READER):
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, {}
        if path == "/api/validate-yaml":
            return 200, {}, {"errors": [], "warnings": []}
        if token == READER and method == "POST":
            return 403, {"X-Error-Message": "You don't have the rights to create a model under this namespace"}, {}
        return self._writer(method, path, body)

    def _writer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return (
                200,
                {},
                {"transfer": "basic", "objects": [self._offer(each) for each in json.loads(body)["objects"]]},
            )
        name, _, rest = path.removeprefix("/api/models/").partition("/preupload/")
        if rest:
            return 200, {}, {"files": [self._mode(name, each) for each in json.loads(body)["files"]]}
        name, _, rest = path.removeprefix("/api/models/").partition("/commit/")
        if rest:
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        name = path.removeprefix("/api/models/").partition("/revision/")[0]
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, {}
        return 200, {}, {"id": name, "sha": self.commit(name), "private": name in self.private, "siblings": []}

    def commit(self, name: str) -> str:
        return hashlib.sha1(repr((name, len(self.repositories[name]))).encode(), usedforsecurity=False).hexdigest()

    def _create(self, wanted: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repositories:
            return 409, {"X-Error-Message": "You already created this model repo"}, {"url": f"{self.url}/{name}"}
        self.repositories[name] = []
        if wanted.get("visibility") == "private":
            self.private.add(name)
        return 200, {}, {"url": f"{self.url}/{name}"}

    def _mode(self, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        data = self.files(name).get(wanted["path"])
        large = wanted["path"].endswith(".safetensors")
        known = (hashlib.sha256(data).hexdigest() if large else git_oid(data)) if data is not None else None
        mode = "lfs" if large else "regular"
        return {"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known}

    def _offer(self, wanted: dict[str, Any]) -> dict[str, Any]:
        there = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.objects:
            return there
        return {**there, "actions": {"upload": {"href": f"{self.url}/objects/{wanted['oid']}"}}}

    def _object(self, oid: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {}, {"error": "the digest does not fit"}
        self.objects[oid] = body
        return 200, {}, {}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, str], Any]:
        files = dict(self.files(name))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, {"X-Error-Message": "a pointed file is not there"}, {}
                files[value["path"]] = self.objects[value["oid"]]
        self.repositories[name].append(files)
        commit = self.commit(name)
        return 200, {}, {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"}


def git_oid(data: bytes) -> str:
    """The digest that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def serving_uploads() -> Iterator[UploadHub]:
    """Serve on a free port of loopback."""
    hub = UploadHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, headers, document = hub.answer(self.command, self.path.partition("?")[0], token, body)
            data = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(data)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST  # noqa: N815 - the base class's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
