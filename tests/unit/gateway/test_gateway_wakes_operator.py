"""Both ends of the load's stream together: the real gateway holds a request, the operator's own client hears of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import gateway_world as world
import pytest
from gateway_world import order, post, raw, until
from prometheus_client import CollectorRegistry

from tuneloop_core.api.scaling import Scaling
from tuneloop_gateway.config import Limits
from tuneloop_gateway.http_server import ServerConnection, ServerState
from tuneloop_gateway.internal import Internal
from tuneloop_operator.kube import pods
from tuneloop_operator.kube.pods import PodClient
from tuneloop_operator.names import Key
from tuneloop_operator.reconcile.gateways import Gateways
from tuneloop_operator.reconcile.scaling import Scaler, Wish

KEY = Key("ModelDeployment", "team", "qa")
ASLEEP = Scaling.model_validate({"minReplicas": 0, "maxReplicas": 2})


@pytest.fixture
async def client(team: world.World, limits: Limits, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PodClient]:
    """The operator's HTTP, which finds the gateway's internal port."""
    internal = Internal(team.measures, team.proxy.holds, CollectorRegistry(), lambda: True)
    state = ServerState(internal, limits)
    listener = await asyncio.get_running_loop().create_server(lambda: ServerConnection(state), "127.0.0.1", 0)
    monkeypatch.setattr(pods, "GATEWAY_INTERNAL_PORT", listener.sockets[0].getsockname()[1])

    async def token(_: str) -> str:
        return ""

    made = PodClient(token)
    yield made
    await made.close()
    listener.close()
    await until(lambda: not team.proxy.holds.watchers, "the watch to end with its reader")


async def test_a_held_request_wakes_and_the_answer_ends_it(team: world.World, client: PodClient) -> None:
    woken: list[Key] = []
    gateways = Gateways(cast(Any, None), client, cast(Any, None), woken.append)
    scaler = Scaler(gateways, client, woken.append)
    assert scaler.wanted(KEY, Wish(ASLEEP, None, 0)).replicas == 0
    gateways._follow({"127.0.0.1"})
    await until(gateways.complete, "the first line of the gateway")
    team.route(world.deployment("qa"))
    body = json.dumps({"model": "qa", "messages": order(do="answer")}).encode()
    asking = asyncio.create_task(raw(team.port, post("/team/v1/chat/completions", body, "connection: close\r\n")))
    await until(lambda: woken == [KEY], "the held request to wake its deployment")
    assert scaler.wanted(KEY, Wish(ASLEEP, None, 0)).replicas == 1
    team.route(world.deployment("qa"), world.endpoint_slice("qa", ["127.0.0.1"], team.server.port))
    assert (await asking).startswith(b"HTTP/1.1 200")
    await until(lambda: [each.requests for each in gateways.loads(KEY).values()] == [1], "the answer to be counted")
    gateways._follow(set())
    assert not gateways.complete()
