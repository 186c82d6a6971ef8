"""The real process: ``python -m tuneloop_gateway`` with settings, a watched API server and signals.

The API server here is a few lines that list, watch and misbehave on purpose; the real one is in tests/apiserver.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gateway_world as world
import httpx
import pytest
import yaml
from aiohttp import web
from gateway_process import Process, started
from gateway_world import KEY, order, until
from ports import free_port

SLICES, DEPLOYMENTS = "endpointslices", "modeldeployments"


@dataclass
class ApiServer:
    """Lists what it has; events are sent to open watches as given."""

    objects: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lists: list[str] = field(default_factory=list)
    watches: dict[str, web.StreamResponse] = field(default_factory=dict)
    status: int = 200

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/apis/{group}/{version}/{plural}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        plural = request.match_info["plural"]
        if self.status != 200:
            return web.Response(status=self.status)
        if "watch" not in request.query:
            self.lists.append(plural)
            return web.json_response({"metadata": {"resourceVersion": "10"}, "items": self.objects.get(plural, [])})
        response = self.watches[plural] = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(3600)
        return response

    async def send(self, plural: str, event: dict[str, Any]) -> None:
        await until(lambda: plural in self.watches, f"a watch of {plural}")
        await self.watches[plural].write(json.dumps(event).encode() + b"\n")

    def cut(self, plural: str) -> None:
        response = self.watches.pop(plural)
        assert response._req is not None
        assert response._req.transport is not None
        response._req.transport.abort()


@pytest.fixture
async def api(server: world.ModelServer) -> AsyncIterator[ApiServer]:
    return ApiServer(
        {
            DEPLOYMENTS: [world.deployment("qa")],
            SLICES: [world.endpoint_slice("qa", ["127.0.0.1"], server.port)],
        }
    )


def by_http(tmp_path: Path, api_port: int) -> contextlib.AbstractAsyncContextManager[Process]:
    """The gateway before an API server that speaks plain HTTP."""
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{api_port}"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    return started(tmp_path, tmp_path / "kubeconfig")


async def test_it_serves_and_reports_its_load(tmp_path: Path, api: ApiServer, server: world.ModelServer) -> None:
    async with world.listening(api.application()) as port, by_http(tmp_path, port) as gateway:
        await gateway.becomes(["qa"])
        async with gateway.client() as client:
            await client.chat.completions.create(model="qa", messages=order(do="answer"))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.internal}") as inside:
            load = (await inside.get("/internal/load")).json()
            metrics = (await inside.get("/metrics")).text
            assert (await inside.get("/readyz")).status_code == 200
            assert (await inside.get("/other")).status_code == 404
    assert load["instance"] == "gateway-7"
    assert [(each["name"], each["requests"], each["completionTokens"]) for each in load["deployments"]] == [
        ("qa", 1, 3)
    ]
    assert 'tuneloop_gateway_requests_total{code="200",deployment="qa"' in metrics
    assert "tuneloop_gateway_ready_endpoints 1.0" in metrics
    assert KEY not in gateway.log.read_text()


async def test_events_change_the_table(tmp_path: Path, api: ApiServer) -> None:
    async with world.listening(api.application()) as port, by_http(tmp_path, port) as gateway:
        await gateway.becomes(["qa"])
        await api.send(DEPLOYMENTS, {"type": "ADDED", "object": world.deployment("second")})
        await gateway.becomes(["qa", "second"])
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "20"}}}
        await api.send(DEPLOYMENTS, bookmark)
        await api.send(DEPLOYMENTS, {"type": "MODIFIED", "object": world.deployment("second", access=None)})
        await gateway.becomes(["qa"])
        broken = world.deployment("qa", access={"keys": [{"name": "x", "hash": "not a hash"}]})
        await api.send(DEPLOYMENTS, {"type": "MODIFIED", "object": broken})
        await api.send(DEPLOYMENTS, {"type": "ADDED", "object": world.deployment("third")})
        await gateway.becomes(["qa", "third"])
        await api.send(DEPLOYMENTS, {"type": "DELETED", "object": world.deployment("third")})
        await gateway.becomes(["qa"])
    assert "its last form is kept" in gateway.log.read_text()
    assert "not a hash" not in gateway.log.read_text()


async def test_410_lists_again_and_a_cut_watch_goes_on(tmp_path: Path, api: ApiServer) -> None:
    async with world.listening(api.application()) as port, by_http(tmp_path, port) as gateway:
        await gateway.becomes(["qa"])
        await until(lambda: DEPLOYMENTS in api.watches, "the watch")
        api.objects[DEPLOYMENTS].append(world.deployment("second"))
        await api.send(DEPLOYMENTS, {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
        await gateway.becomes(["qa", "second"])
        assert api.lists.count(DEPLOYMENTS) == 2
        await until(lambda: DEPLOYMENTS in api.watches, "the watch after the list")
        api.cut(DEPLOYMENTS)
        await api.send(DEPLOYMENTS, {"type": "ADDED", "object": world.deployment("third")})
        await gateway.becomes(["qa", "second", "third"])
        assert api.lists.count(DEPLOYMENTS) == 2, "a cut watch goes on from where it was"


async def test_it_serves_while_the_api_server_is_away(tmp_path: Path, api: ApiServer) -> None:
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        async with world.listening(api.application(), port):
            gateway = await stack.enter_async_context(by_http(tmp_path, port))
            await gateway.becomes(["qa"])
        async with gateway.client() as client:
            answer = await client.chat.completions.create(model="qa", messages=order(do="answer"))
            assert answer.choices[0].message.content == "Paris."
        api.objects[DEPLOYMENTS].append(world.deployment("second"))
        api.watches.clear()
        async with world.listening(api.application(), port):
            await api.send(DEPLOYMENTS, {"type": "ERROR", "object": {"code": 410}})
            await gateway.becomes(["qa", "second"])


async def test_it_is_not_ready_before_the_first_list(tmp_path: Path, api: ApiServer) -> None:
    api.status = 503
    async with world.listening(api.application()) as port, by_http(tmp_path, port) as gateway:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}") as client:
            for _ in range(400):
                with contextlib.suppress(httpx.TransportError):
                    assert (await client.get("/readyz")).status_code == 503
                    break
                await asyncio.sleep(0.05)
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/team/v1/models")).status_code == 503
        api.status = 200
        await gateway.becomes(["qa"])


async def test_sigterm_finishes_streams(
    tmp_path: Path, api: ApiServer, server: world.ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNELOOP_GATEWAY_LAME_SECONDS", "4")  # a busy machine takes its time to ask
    async with (
        world.listening(api.application()) as port,
        by_http(tmp_path, port) as gateway,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}") as other,
    ):
        await gateway.becomes(["qa"])
        messages = order(do="stream", tokens=2, wait=True)
        async with gateway.client() as client:
            stream = await client.chat.completions.create(model="qa", messages=messages, stream=True)
            await anext(aiter(stream))
            gateway.process.send_signal(signal.SIGTERM)
            await until(lambda: "stopping" in gateway.log.read_text(), "the gateway to begin its end")
            assert (await other.get("/readyz")).status_code == 503, "not ready, but still answering"
            await until(lambda: refused(gateway.port), "the gateway to take no new connection")
            server.gate.set()
            assert [chunk.choices[0].delta.content async for chunk in stream] == [" t0", " t1", None]
        assert await asyncio.wait_for(gateway.process.wait(), 20) == 0
    assert '"cut_off":0' in gateway.log.read_text()


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_bad_settings_end_it_with_words(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("images: {trainer: t, server: s}\ngateway: {maxBodyBytes: -1}\n")
    env = os.environ | {"TUNELOOP_SETTINGS": str(tmp_path / "settings.yaml")}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tuneloop_gateway", env=env, stderr=pipe)
    _, words = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert "gateway.maxBodyBytes" in json.loads(words.splitlines()[-1])["error"]
