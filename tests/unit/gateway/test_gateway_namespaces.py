"""A namespace of the settings that is gone, with the role in it: the other teams are served, also by a new gateway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import gateway_world as world
import pytest
from aiohttp import web
from gateway_world import until
from ports import free_port

from tuneloop_core.settings import Settings
from tuneloop_gateway.cluster import Access
from tuneloop_gateway.config import Config, Limits
from tuneloop_gateway.gateway import Gateway
from tuneloop_gateway.watch import Pace

LIMITS = Limits(lame_seconds=0.0, grace_seconds=0.0)
QUICK = Pace(refused=0.2, first_backoff=0.01, last_backoff=0.02)
PATIENT = Pace(refused=3600.0, first_backoff=0.01, last_backoff=0.02)


@dataclass
class Api:
    """An API server of namespaces, some of which it answers with another status than 200."""

    statuses: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    cut: asyncio.Event = field(default_factory=asyncio.Event)  # ends the watches

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/apis/{group}/{version}/namespaces/{namespace}/{plural}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        space, plural = request.match_info["namespace"], request.match_info["plural"]
        self.asked[space] = self.asked.get(space, 0) + 1
        if self.statuses.get(space, 200) != 200:
            return web.Response(status=self.statuses[space])
        if "watch" in request.query:  # says nothing
            response = web.StreamResponse()
            await response.prepare(request)
            await self.cut.wait()
            return response
        items = [world.deployment("qa", space)] if plural == "modeldeployments" else []
        return web.json_response({"metadata": {"resourceVersion": "10"}, "items": items})


@asynccontextmanager
async def serving(api: Api, pace: Pace) -> AsyncIterator[Gateway]:
    """A gateway of team-a and team-b."""
    raw: dict[str, Any] = {"images": {"trainer": "t", "server": "s"}, "namespaces": ["team-a", "team-b"]}
    ports = {"port": free_port(), "internal_port": free_port()}
    config = Config(Settings.model_validate(raw), LIMITS, host="127.0.0.1", **ports)
    async with world.listening(api.application()) as port:
        found, stop = Gateway(config, Access(f"http://127.0.0.1:{port}"), pace), asyncio.Event()
        task = asyncio.create_task(found.run(stop))
        try:
            yield found
        finally:
            stop.set()
            await task
            await asyncio.sleep(0)  # what it cancelled ends


def served(gateway: Gateway) -> list[str]:
    return sorted(gateway.proxy.table or {})


async def test_a_forbidden_namespace_keeps_no_other_waiting_and_comes_back() -> None:
    api = Api({"team-b": 403})
    async with serving(api, QUICK) as gateway:
        await until(lambda: gateway.proxy.ready, "the gateway to serve the namespace that there is")
        assert served(gateway) == ["team-a"]
        api.statuses.clear()
        await until(lambda: served(gateway) == ["team-a", "team-b"], "the namespace that was made anew")


@pytest.mark.parametrize(
    ("statuses", "pace"),
    [
        ({"team-b": 403}, PATIENT),  # a role that is not known everywhere yet
        ({"team-b": 503}, QUICK),  # it may have models, and will say
        ({"team-b": 404}, QUICK),  # the CRD is not there yet
        ({"team-a": 403, "team-b": 403}, QUICK),  # our own account has no rights at all
    ],
    ids=["just now", "away", "no such kind", "everywhere"],
)
async def test_what_is_waited_for(statuses: dict[str, int], pace: Pace) -> None:
    api = Api(statuses)
    async with serving(api, pace) as gateway:
        await until(lambda: api.asked.get("team-b", 0) >= 40, "many tries")
        assert not gateway.proxy.ready


async def test_a_server_that_is_away_in_between_does_not_bring_a_namespace_back() -> None:
    api = Api({"team-b": 403})
    async with serving(api, QUICK) as gateway:
        await until(lambda: gateway.proxy.ready, "the gateway to serve the namespace that there is")
        api.statuses["team-b"] = 503
        asked = api.asked["team-b"]
        await until(lambda: api.asked["team-b"] >= asked + 8, "some tries")
        assert gateway._is_settled(), "what changes in the other is seen"


async def test_what_was_known_of_a_namespace_stays_when_it_is_forbidden_later() -> None:
    """Its pods may serve on: a namespace that is deleted says of each object that it goes."""
    api = Api()
    async with serving(api, QUICK) as gateway:
        await until(lambda: gateway.proxy.ready, "the gateway to serve both")
        api.statuses["team-b"] = 403
        api.cut.set()
        await until(lambda: any(each.forbidden for each in gateway._watchers()), "the refusal to last")
        assert gateway.proxy.ready
        assert served(gateway) == ["team-a", "team-b"]
