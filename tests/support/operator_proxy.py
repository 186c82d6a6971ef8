"""An API server that can be cut off, frozen, watched at, or that kills its client at a chosen write.

Plain HTTP towards the operator, TLS with the admin's certificate towards the real one. Runs in a thread of its own.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml
from aiohttp import web
from operator_api import tls_of

Obj = dict[str, Any]


@dataclass
class Write:
    """A mutating request that reached the proxy; ``status`` is None when it was not forwarded."""

    method: str
    path: str
    status: int | None = None


@dataclass
class Proxy:
    """Starts on entering; its ``kubeconfig`` is what the operator is given."""

    real: Path
    folder: Path
    writes: list[Write] = field(default_factory=list)
    before_write: Callable[[Write], bool] = lambda _write: True  # False: do not forward, answer nothing
    after_write: Callable[[Write], bool] = lambda _write: True  # False: forwarded, but answer nothing
    frozen: bool = False  # watches give nothing any more; everything else works
    down: bool = False  # every connection is refused
    forbid: str = ""  # paths that contain this are answered 403

    def __enter__(self) -> Self:
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30), "the proxy did not start"
        self.kubeconfig = self.folder / f"proxy-{self._port}.kubeconfig"
        cluster = {"name": "x", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}
        context = {"name": "x", "context": {"cluster": "x", "user": "x"}}
        config = {"clusters": [cluster], "contexts": [context], "users": [{"name": "x", "user": {}}]}
        self.kubeconfig.write_text(yaml.safe_dump(config | {"current-context": "x"}))
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def cut(self) -> None:
        """Refuse connections and drop those there are."""
        self.down = True
        asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result(30)

    def mend(self) -> None:
        """Answer again."""
        self.down = False

    def created(self, plural: str) -> list[str]:
        """Paths below which an object of this kind was created, with the count of successes in order."""
        return [write.path for write in self.writes if write.method == "POST" and write.path.endswith(plural)]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        config = yaml.safe_load(self.real.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        self._stop = asyncio.Event()
        connector = aiohttp.TCPConnector(ssl=tls_of(cluster, user), limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        self._open: dict[int, web.Request] = {}
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await self._session.close()
        await runner.cleanup()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _drop(self) -> None:
        for request in list(self._open.values()):
            if request.transport is not None:
                request.transport.abort()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.down:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=503)
        self._open[id(request)] = request
        try:
            return await self._forward(request)
        finally:
            self._open.pop(id(request), None)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        if self.forbid and self.forbid in request.path:
            return web.json_response(
                {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no"}, status=403
            )
        body = await request.read()
        write = Write(request.method, request.path)
        counted = request.method != "GET" and "/leases" not in request.path
        if counted:
            self.writes.append(write)
            if not self.before_write(write):
                return await self._silence(request)
        headers = {k: v for k, v in request.headers.items() if k.lower() in ("content-type", "accept", "user-agent")}
        url = f"{self._server}{request.path_qs}"
        async with self._session.request(request.method, url, data=body or None, headers=headers) as answer:
            write.status = answer.status
            if counted and not self.after_write(write):
                return await self._silence(request)
            return await self._relay(request, answer)

    async def _relay(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        watch = "watch=true" in request.query_string
        kept = {k: v for k, v in answer.headers.items() if k.lower() in ("content-type", "retry-after")}
        response = web.StreamResponse(status=answer.status, headers=kept)
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            while watch and self.frozen:  # noqa: ASYNC110 - set from another thread
                await asyncio.sleep(0.05)
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _silence(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response(status=503)
