"""A small world around the gateway for its tests: a model server, an API server, and clients that speak bytes.

The model server does what the request's last message says, so a test reads in one place. Never used outside tests.
"""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tuneloop_core.servertokens import ServerToken
from tuneloop_core.serving import GatewayLoad
from tuneloop_core.settings import HoldSettings
from tuneloop_gateway.accesslog import AccessLog
from tuneloop_gateway.config import Limits
from tuneloop_gateway.http_server import ServerConnection, ServerState
from tuneloop_gateway.ledger import Ledger
from tuneloop_gateway.load import gateway_load
from tuneloop_gateway.measure import Measures
from tuneloop_gateway.proxy import Proxy
from tuneloop_gateway.routes import build_table, parse_deployment, parse_slice
from tuneloop_gateway.server_tokens import ServerTokens

KEY = "tl-test-key"
HASH = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
OTHER_KEY = "tl-other-key"
OTHER_HASH = "sha256:" + hashlib.sha256(OTHER_KEY.encode()).hexdigest()
DIGEST12 = "0123456789ab"
POOLED: dict[str, dict[str, Any]] = {  # by vLLM's own paths
    "/v1/embeddings": {"object": "embedding", "index": 0, "embedding": [0.5, -0.5]},
    "/classify": {"index": 0, "label": "spam", "probs": [0.9, 0.1], "num_classes": 2},
    "/v1/score": {"object": "score", "index": 0, "score": 0.75},
}


def deployment(name: str, namespace: str = "team", **more: Any) -> dict[str, Any]:
    """A ModelDeployment as the API server gives it."""
    adapters = more.pop("adapters", [])
    access = more.pop("access", {"keys": [{"name": "app", "hash": HASH}]})
    states = [{"name": a, "engineName": f"{a}@{DIGEST12}", "state": "Ready"} for a in adapters]
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "resourceVersion": "1",
            "creationTimestamp": more.pop("created", "2026-01-01T00:00:00Z"),
        },
        "spec": {"adapters": [{"name": a} for a in adapters]} | ({"access": access} if access is not None else {}),
        "status": {"adapters": states} | more,
    }


def endpoint_slice(name: str, addresses: list[str], port: int, namespace: str = "team", **more: Any) -> dict[str, Any]:
    """An EndpointSlice of a server Service."""
    labels = {"kubernetes.io/service-name": f"{name}-server", "app.kubernetes.io/managed-by": "tuneloop"}
    endpoints = [{"addresses": [each], "conditions": {"ready": True}} for each in addresses]
    return {
        "metadata": {"name": f"{name}-server-abc", "namespace": namespace, "resourceVersion": "1", "labels": labels},
        "ports": [{"name": "http", "port": port}],
        "endpoints": endpoints,
    } | more


# ---- the model server ----


@dataclass
class Seen:
    """One request as the server got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    port: int | None


@dataclass
class ModelServer:
    """Talks like vLLM; what it does is the last message: {"do": ..., ...}."""

    seen: list[Seen] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # what clients walked away from
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    always: dict[str, Any] = field(default_factory=dict)  # done whatever the message says

    def application(self) -> web.Application:
        """Routes of the model server."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_post("/v1/completions", self.answer)
        for path in POOLED:
            app.router.add_post(path, self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Do what the message says."""
        fields = await request.json()
        peer = request.transport.get_extra_info("peername") if request.transport else None
        self.seen.append(Seen(request.path, dict(request.headers), fields, peer[1] if peer else None))
        order = dict(self.always) or _order(fields)
        action: Callable[..., Awaitable[web.StreamResponse]] = getattr(self, f"do_{order.pop('do', 'answer')}")
        try:
            return await action(request, fields, **order)
        except asyncio.CancelledError:
            self.left.append(request.path)
            raise

    async def do_answer(self, request: web.Request, fields: dict[str, Any]) -> web.StreamResponse:
        """A whole answer, or a stream of three tokens; vectors, classes and scores by path."""
        if request.path in POOLED:
            usage = {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0, "prompt_tokens_details": None}
            return web.json_response({"object": "list", "data": [POOLED[request.path]], "usage": usage})
        if fields.get("stream"):
            return await self.do_stream(request, fields, tokens=3)
        choice = {"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        identity = f"chatcmpl-{request.headers['x-request-id']}"  # as vLLM's _base_request_id has it
        body = {"id": identity, "object": "chat.completion", "created": 1, "model": fields["model"]}
        return web.json_response(body | {"choices": [choice], "usage": usage})

    async def do_stream(
        self, request: web.Request, fields: dict[str, Any], tokens: int, interval: float = 0.0, wait: bool = False
    ) -> web.StreamResponse:
        """Tokens one by one; with ``wait`` the gate opens the way after the first."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(event(delta={"role": "assistant", "content": ""}))
        for number in range(tokens):
            await response.write(event(delta={"content": f" t{number}"}))
            if wait:
                await self.gate.wait()
            await asyncio.sleep(interval)
        await response.write(event(delta={}, finish="stop"))
        if (fields.get("stream_options") or {}).get("include_usage"):
            await response.write(usage_event(7, tokens))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def do_bytes(self, request: web.Request, fields: dict[str, Any], pieces: list[str]) -> web.StreamResponse:
        """A stream of exactly these pieces."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece.encode())
            await asyncio.sleep(0.01)
        await response.write_eof()
        return response

    async def do_fill(self, request: web.Request, fields: dict[str, Any], megabytes: int) -> web.StreamResponse:
        """A stream as fast as it is read."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(megabytes * 16):
            await response.write(event(delta={"content": "x" * 65536}))
        await response.write_eof()
        return response

    async def do_large(self, request: web.Request, fields: dict[str, Any], megabytes: int) -> web.StreamResponse:
        """A large answer that is not a stream."""
        return web.Response(body=b'{"x":"' + b"y" * (megabytes << 20) + b'"}', content_type="application/json")

    async def do_error(
        self, request: web.Request, fields: dict[str, Any], status: int, body: Any, retry: str = ""
    ) -> web.StreamResponse:
        """An error status with a body."""
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text, headers={"retry-after": retry} if retry else None)

    async def do_hang(self, request: web.Request, fields: dict[str, Any]) -> web.StreamResponse:
        """Never answer."""
        await asyncio.sleep(3600)
        return web.Response()

    async def do_silence(self, request: web.Request, fields: dict[str, Any]) -> web.StreamResponse:
        """Begin a stream and fall silent."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event(delta={"content": "a"}))
        await asyncio.sleep(3600)
        return response

    async def do_break(self, request: web.Request, fields: dict[str, Any], after: int) -> web.StreamResponse:
        """Die after so many tokens; 0 is before the head."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        if after:
            await response.prepare(request)
        for number in range(after):
            await response.write(event(delta={"content": f" t{number}"}))
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response


def _order(fields: dict[str, Any]) -> dict[str, Any]:
    text = fields["messages"][-1]["content"] if "messages" in fields else fields.get("prompt", fields.get("input", ""))
    return dict(json.loads(text)) if str(text).startswith("{") else {}


def order(**words: Any) -> list[dict[str, str]]:
    """Messages that tell the model server what to do."""
    return [{"role": "user", "content": json.dumps(words)}]


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    """One chunk as vLLM words it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def usage_event(prompt: int, completion: int) -> bytes:
    """The chunk that include_usage adds."""
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": usage}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


@contextlib.asynccontextmanager
async def listening(app: web.Application, port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serve an aiohttp application; gives its port. Handlers are cancelled when their client leaves."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


# ---- the gateway, without a cluster ----


@dataclass
class World:
    """A gateway with a table of the test's own."""

    proxy: Proxy
    state: ServerState
    measures: Measures
    server: ModelServer
    port: int
    lines: int  # where the access log can be read

    def access_log(self) -> list[dict[str, Any]]:
        """What was written since the last time; 64 KiB at most."""
        assert self.proxy.ledger.log.finish(20)
        os.set_blocking(self.lines, False)
        with contextlib.suppress(BlockingIOError):
            return [json.loads(line) for line in os.read(self.lines, 65536).splitlines()]
        return []

    @property
    def url(self) -> str:
        """The base URL of namespace team."""
        return f"http://127.0.0.1:{self.port}/team/v1"

    def load(self) -> GatewayLoad:
        """What the operator would be told."""
        return gateway_load(self.measures)

    def route(self, *objects: dict[str, Any], allow: bool = False) -> None:
        """Route by these objects."""
        deployments = [parse_deployment(each) for each in objects if "spec" in each]
        slices = [parse_slice(each) for each in objects if "endpoints" in each]
        self.proxy.set_table(build_table(deployments, slices, allow))


def server_tokens() -> ServerTokens:
    """Tokens that say which namespace they are for."""

    async def ask(namespace: str) -> ServerToken:
        return ServerToken(f"token-of-{namespace}", 3600)

    return ServerTokens(ask)


@contextlib.asynccontextmanager
async def gateway(
    limits: Limits, server: ModelServer, tokens: ServerTokens, allow: bool = False, hold: HoldSettings | None = None
) -> AsyncIterator[World]:
    """The public listener on a free port, swept ten times a second."""
    measures = Measures("gw-0", "2026-01-01T00:00:00+00:00")
    lines, written = os.pipe()
    ledger = Ledger(AccessLog(descriptor=written))
    proxy = Proxy(limits, allow, measures, tokens, ledger, hold or HoldSettings())
    state = ServerState(proxy, limits)
    state.refused = lambda reply: measures.reject(reply.status, reply.reason)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: ServerConnection(state), "127.0.0.1", 0)
    sweeper = loop.create_task(_sweep(proxy, state))
    try:
        yield World(proxy, state, measures, server, listener.sockets[0].getsockname()[1], lines)
    finally:
        sweeper.cancel()
        listener.close()
        state.drain()
        for connection in list(state.connections):
            connection.abort()
        proxy.close()
        os.close(lines)
        os.close(written)
        await asyncio.sleep(0)


async def _sweep(proxy: Proxy, state: ServerState) -> None:
    while True:
        await asyncio.sleep(0.1)
        now = asyncio.get_running_loop().time()
        proxy.sweep(now)
        state.sweep(now)


# ---- clients and waits ----


async def until(true: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait for something to become true; says what was waited for."""
    end = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < end, f"waited {seconds} s for: {what}"
        await asyncio.sleep(0.01)


async def raw(port: int, data: bytes, more: bool = False) -> bytes:
    """Send bytes, read until the other side closes; with ``more`` only until it pauses."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(1 << 20) if more else reader.read(-1), 20)
    finally:
        writer.close()


def post(path: str, body: bytes, headers: str = "", key: str = KEY) -> bytes:
    """A POST as bytes."""
    head = f"POST {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
