"""The load as a stream: what the operator wakes and scales by."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import gateway_world as world
import pytest
from gateway_world import order, post, raw, until
from prometheus_client import CollectorRegistry

from tuneloop_core.serving import GatewayLoad
from tuneloop_gateway import load_stream
from tuneloop_gateway.config import Limits
from tuneloop_gateway.http_server import ServerConnection, ServerState
from tuneloop_gateway.internal import Internal


@dataclass
class Reader:
    """Somebody who watches the load of a gateway."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def line(self) -> GatewayLoad:
        """The next line; each is a chunk of its own."""
        size = int(await asyncio.wait_for(self.reader.readline(), 30), 16)
        line = (await self.reader.readexactly(size + 2))[:-2]
        assert line.endswith(b"\n")
        return GatewayLoad.model_validate_json(line)


@pytest.fixture
def pace() -> tuple[float, float]:
    """Seconds between looks for changes, and between lines in any case; never, where a test does not want them."""
    return 3600.0, 3600.0


@pytest.fixture
async def watching(
    team: world.World, limits: Limits, pace: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Reader]:
    monkeypatch.setattr(load_stream, "PACE_SECONDS", pace[0])
    monkeypatch.setattr(load_stream, "HEARTBEAT_SECONDS", pace[1])
    internal = Internal(team.measures, team.proxy.holds, CollectorRegistry(), lambda: True)
    state = ServerState(internal, limits)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: ServerConnection(state), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.sockets[0].getsockname()[1])
    writer.write(b"GET /internal/load?watch=true HTTP/1.1\r\nhost: h\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"application/x-ndjson" in head
    yield Reader(reader, writer)
    writer.close()
    listener.close()
    await until(lambda: not team.proxy.holds.watchers, "the watch to end with its reader")


def ask(team: world.World) -> asyncio.Task[bytes]:
    body = json.dumps({"model": "qa", "messages": order(do="answer")}).encode()
    return asyncio.create_task(raw(team.port, post("/team/v1/chat/completions", body, "connection: close\r\n")))


async def test_a_queue_that_fills_is_told_at_once(watching: Reader, team: world.World) -> None:
    assert (await watching.line()).deployments == []
    team.route(world.deployment("qa"))
    asking = ask(team)
    (found,) = (await watching.line()).deployments
    assert (found.namespace, found.name, found.queued, found.ongoing, found.ttft) == ("team", "qa", 1, 0, None)
    team.route(world.deployment("qa"), world.endpoint_slice("qa", ["127.0.0.1"], team.server.port))
    assert (await asking).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("pace", [(1.0, 3600.0)])
async def test_changes_come_once_a_second(watching: Reader, team: world.World) -> None:
    assert (await watching.line()).deployments == []
    for _ in range(3):
        await ask(team)
    while (found := await watching.line()).deployments[0].requests < 3:
        pass
    assert found.deployments[0].models[0].name == "qa"
    assert found.deployments[0].models[0].e2e is not None


@pytest.mark.parametrize("pace", [(3600.0, 0.05)])
async def test_a_quiet_gateway_still_says_that_it_is_there(watching: Reader) -> None:
    assert (await watching.line()).deployments == []
    assert (await watching.line()).instance == "gw-0"
