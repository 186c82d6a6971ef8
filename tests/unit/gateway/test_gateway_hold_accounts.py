"""What a held request costs its key: limits count before it waits, and what met no server costs nothing."""

import asyncio
import json
from typing import Any

import gateway_world as world
import openai as sdk
import pytest
from gateway_world import HASH, order, post, raw, until
from openai import AsyncOpenAI

from tuneloop_core.settings import HoldSettings

CHAT = "/team/v1/chat/completions"
KEYS = [{"name": "app", "hash": HASH}]
ONE: dict[str, Any] = {"keys": KEYS, "limits": {"requestsPerMinute": 1, "tokensPerMinute": 5000}}
MODEL_STALL = [{"type": "Stalled", "status": "True", "reason": "ModelNotFound", "message": "hf://org/name: 404"}]


@pytest.fixture
async def asleep(team: world.World) -> world.World:
    """Deployment qa with no replica, one request a minute for each key."""
    team.route(world.deployment("qa", access=ONE))
    return team


def wake(team: world.World, name: str = "qa", access: dict[str, Any] = ONE) -> None:
    team.route(world.deployment(name, access=access), world.endpoint_slice(name, ["127.0.0.1"], team.server.port))


def ask(team: world.World, stream: bool = False) -> asyncio.Task[bytes]:
    body = json.dumps({"model": "qa", "stream": stream, "messages": order(do="answer")}).encode()
    return asyncio.create_task(raw(team.port, post(CHAT, body, "connection: close\r\n")))


async def held(team: world.World, count: int) -> None:
    await until(lambda: sum(each.queued for each in team.load().deployments) == count, f"{count} to be held")


async def test_a_key_that_is_used_up_is_told_at_once_and_takes_no_place(
    openai: AsyncOpenAI, asleep: world.World
) -> None:
    first = ask(asleep)
    await held(asleep, 1)
    with pytest.raises(sdk.RateLimitError, match="Key 'app' has used up its 1 requests per minute") as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    await held(asleep, 1)
    wake(asleep)
    assert (await first).startswith(b"HTTP/1.1 200")
    assert [line["status"] for line in asleep.access_log()] == [429, 200]


@pytest.mark.parametrize("hold", [HoldSettings(heartbeat_seconds=0.05)])
async def test_a_held_stream_carries_the_headers_of_limits(asleep: world.World) -> None:
    asking = ask(asleep, stream=True)
    await held(asleep, 1)
    await asyncio.sleep(0.2)
    wake(asleep)
    answer = await asking
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b": waiting for a replica of qa" in rest
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert b"\r\nx-ratelimit-limit-requests: 1\r\n" in head
    assert b"\r\nx-ratelimit-remaining-requests: 0" in head


@pytest.mark.parametrize("hold", [HoldSettings(max_seconds=0.2)])
async def test_who_was_not_served_may_ask_again(openai: AsyncOpenAI, asleep: world.World) -> None:
    with pytest.raises(sdk.InternalServerError, match="was held for") as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    headers = caught.value.response.headers
    assert [headers[f"x-ratelimit-remaining-{what}"] for what in ("requests", "tokens")] == ["1", "5000"]
    left = ask(asleep)
    await held(asleep, 1)
    left.cancel()
    await held(asleep, 0)
    wake(asleep)
    assert (await ask(asleep)).startswith(b"HTTP/1.1 200"), "neither of the two before counts"
    assert (await ask(asleep)).startswith(b"HTTP/1.1 429"), "this one does"


@pytest.mark.parametrize("hold", [HoldSettings(max_requests=1, max_seconds=0.5)])
async def test_the_log_says_whose_request_was_refused_and_why(asleep: world.World) -> None:
    asleep.route(world.deployment("qa", access={"keys": KEYS}))
    waiting = ask(asleep)
    await held(asleep, 1)
    await ask(asleep)
    await waiting
    left = ask(asleep, stream=True)
    await held(asleep, 1)
    left.cancel()
    await held(asleep, 0)
    asleep.route(world.deployment("qa", access={"keys": KEYS}, conditions=MODEL_STALL))
    await ask(asleep)
    lines = asleep.access_log()
    assert [(line["status"], line["failure"], line["stream"]) for line in lines] == [
        (429, "queue_full", False),
        (503, "model_not_ready", False),
        (499, "", True),
        (503, "model_stalled", False),
    ]
    who = {"namespace": "team", "deployment": "qa", "model": "qa", "engineName": "qa", "key": "app", "replica": ""}
    assert all(line.items() >= who.items() and not line["promptTokens"] and line["e2e"] > 0 for line in lines)
    assert asleep.proxy.ledger.usage.used[("team", "qa", "qa", "app")].requests == 4


async def test_a_key_that_is_taken_away_meanwhile_is_in_the_log(asleep: world.World) -> None:
    asking = ask(asleep)
    await held(asleep, 1)
    wake(asleep, access={"keys": [{"name": "other", "hash": world.OTHER_HASH}]})
    assert (await asking).startswith(b"HTTP/1.1 401")
    (line,) = asleep.access_log()
    assert (line["status"], line["failure"], line["key"]) == (401, "invalid_api_key", "app")


async def test_a_key_that_is_renamed_meanwhile_counts_under_its_new_name(asleep: world.World) -> None:
    """The account moves with it, and the one before is as if nobody had asked."""
    asking = ask(asleep)
    await held(asleep, 1)
    renamed = {"keys": [{"name": "renamed", "hash": HASH}], "limits": ONE["limits"]}
    wake(asleep, access=renamed)
    assert (await asking).startswith(b"HTTP/1.1 200")
    assert (await ask(asleep)).startswith(b"HTTP/1.1 429"), "the renamed key is used up"
    wake(asleep)
    assert (await ask(asleep)).startswith(b"HTTP/1.1 200"), "the name before got its request back"
    assert [(line["key"], line["status"]) for line in asleep.access_log()] == [
        ("renamed", 200),
        ("renamed", 429),
        ("app", 200),
    ]
