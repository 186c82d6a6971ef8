"""A model server and a gateway before it, on the event loop that runs in production."""

import asyncio
from collections.abc import AsyncIterator, Callable

import gateway_world as world
import pytest
import uvloop
from openai import AsyncOpenAI

from tuneloop_core.settings import HoldSettings
from tuneloop_gateway.config import Limits
from tuneloop_gateway.server_tokens import ServerTokens


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of production; its transports differ from asyncio's own in more than speed."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def server() -> AsyncIterator[world.ModelServer]:
    """A model server that does what it is told."""
    found = world.ModelServer()
    async with world.listening(found.application()) as port:
        found.port = port
        yield found


@pytest.fixture
def limits() -> Limits:
    """Small enough for a test to reach them; overridden where a test wants others."""
    return Limits(body_bytes=64 * 1024)


@pytest.fixture
def hold() -> HoldSettings:
    """The defaults; overridden where a test wants to reach them."""
    return HoldSettings()


@pytest.fixture
def tokens() -> ServerTokens:
    """The gateway's tokens towards servers."""
    return world.server_tokens()


@pytest.fixture
async def team(
    limits: Limits, hold: HoldSettings, server: world.ModelServer, tokens: ServerTokens
) -> AsyncIterator[world.World]:
    """Namespace team: deployment qa with the adapter support-bot, one ready replica."""
    async with world.gateway(limits, server, tokens, hold=hold) as found:
        found.route(
            world.deployment("qa", adapters=["support-bot"]), world.endpoint_slice("qa", ["127.0.0.1"], server.port)
        )
        yield found


@pytest.fixture
async def openai(team: world.World) -> AsyncIterator[AsyncOpenAI]:
    """The client that users have."""
    async with AsyncOpenAI(base_url=team.url, api_key=world.KEY, max_retries=0, timeout=30) as client:
        yield client
