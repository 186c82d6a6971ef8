"""Tokens towards servers: one a namespace, renewed in time, and never waited for by a request that could go on."""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import gateway_world as world
import pytest
from gateway_world import listening
from openai import AsyncOpenAI

from tuneloop_core.servertokens import ServerToken
from tuneloop_gateway.config import Limits
from tuneloop_gateway.server_tokens import ServerTokens


class Issuer:
    """Numbers its tokens; answers, refuses or hangs as it is told."""

    def __init__(self, refresh_after: float = 3600.0) -> None:
        self.refresh_after = refresh_after
        self.asked: Counter[str] = Counter()
        self.open = asyncio.Event()
        self.open.set()
        self.failing = False
        self.news = asyncio.Event()

    async def ask(self, namespace: str) -> ServerToken:
        await self.open.wait()
        self.asked[namespace] += 1
        self.news.set()
        if self.failing:
            raise OSError("the API server is away")
        return ServerToken(f"{namespace}-{self.asked[namespace]}", self.refresh_after)

    async def asked_again(self) -> None:
        self.news.clear()
        await asyncio.wait_for(self.news.wait(), 30)


def at_once(answer: Coroutine[Any, Any, bytes]) -> bytes:
    """What a coroutine returns that waits for nothing."""
    with pytest.raises(StopIteration) as done:
        answer.send(None)
    return bytes(done.value.value)


async def test_each_namespace_has_a_token_of_its_own() -> None:
    issuer = Issuer()
    tokens = ServerTokens(issuer.ask)
    tokens.keep({"a", "b"})
    assert await tokens.value("a") == b"a-1"
    assert await tokens.value("b") == b"b-1"
    assert await tokens.value("other") == b"", "nobody's namespace has none, and is not waited for"
    tokens.keep({"b"})
    assert await tokens.value("a") == b""
    assert await tokens.value("b") == b"b-1"
    tokens.close()
    assert issuer.asked == {"a": 1, "b": 1}


async def test_a_token_is_renewed_before_it_runs_out_and_no_request_waits_for_it() -> None:
    issuer = Issuer(refresh_after=0.0)
    tokens = ServerTokens(issuer.ask)
    tokens.keep({"a"})
    await issuer.asked_again()
    await issuer.asked_again()
    issuer.open.clear()  # the question after the next one hangs
    for _ in range(10):
        await asyncio.sleep(0)
    assert at_once(tokens.value("a")) == b"a-%d" % issuer.asked["a"]
    assert issuer.asked["a"] > 1
    tokens.close()


async def test_what_fails_leaves_the_old_token_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    issuer = Issuer(refresh_after=0.0)
    tokens = ServerTokens(issuer.ask, retry_seconds=0.0)
    tokens.keep({"a"})
    await issuer.asked_again()
    issuer.failing = True
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await issuer.asked_again()
    assert (await tokens.value("a")).startswith(b"a-")
    assert [record.message.count("no new token") for record in caplog.records] == [1]
    issuer.failing = False
    for _ in range(2):
        await issuer.asked_again()
    assert await tokens.value("a") != b""
    tokens.close()


async def test_a_first_token_that_cannot_be_had_is_waited_for_once() -> None:
    issuer = Issuer()
    issuer.failing = True
    tokens = ServerTokens(issuer.ask)
    tokens.keep({"a"})
    assert await tokens.value("a") == b""
    assert await tokens.value("a") == b""
    assert issuer.asked["a"] == 1
    tokens.close()


async def test_a_request_carries_the_token_of_its_namespace() -> None:
    issuer, server = Issuer(), world.ModelServer()
    async with (
        listening(server.application()) as port,
        world.gateway(Limits(), server, ServerTokens(issuer.ask)) as made,
    ):
        issuer.open.clear()
        made.route(
            world.deployment("qa"),
            world.endpoint_slice("qa", ["127.0.0.1"], port),
            world.deployment("qa", "other"),
            world.endpoint_slice("qa", ["127.0.0.1"], port, "other"),
        )
        async with AsyncOpenAI(base_url=made.url, api_key=world.KEY, max_retries=0, timeout=30) as client:
            early = asyncio.create_task(client.chat.completions.create(model="qa", messages=world.order(do="answer")))
            await asyncio.sleep(0.05)
            issuer.open.set()  # a request that is faster than the first token waits for it
            await early
            elsewhere = client.with_options(base_url=made.url.replace("/team/", "/other/"))
            await elsewhere.chat.completions.create(model="qa", messages=world.order(do="answer"))
    assert [seen.headers["Authorization"] for seen in server.seen] == ["Bearer team-1", "Bearer other-1"]
