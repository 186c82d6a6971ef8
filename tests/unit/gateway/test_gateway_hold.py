"""Requests for a deployment without a replica: held, released in order, bounded, answered in words."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import gateway_world as world
import httpx
import openai as sdk
import pytest
from gateway_world import order, post, raw, until
from openai import AsyncOpenAI
from serving_facts import deployment as spec_of
from serving_facts import facts, revision

from tuneloop_core.settings import HoldSettings
from tuneloop_gateway.config import Limits
from tuneloop_gateway.hold import Held, Queue, retry_after
from tuneloop_gateway.routes import parse_deployment
from tuneloop_operator.policy.adapters import Resolved
from tuneloop_operator.policy.serving import summarize
from tuneloop_operator.policy.verdicts import State, Verdict

CHAT = "/team/v1/chat/completions"
QUICK = HoldSettings(heartbeat_seconds=0.05)
ADAPTER_STALL = [
    {"type": "Stalled", "status": "True", "reason": "AdapterFailed", "message": "adapter bot: rank 64"},
    {"type": "AdaptersReady", "status": "False", "reason": "AdapterFailed", "message": "0 of 1"},
]
HELD_BACK = [ADAPTER_STALL[0], ADAPTER_STALL[1] | {"status": "True", "message": "1 of 1; adapter bot: rank 64"}]
MODEL_STALL = [{"type": "Stalled", "status": "True", "reason": "ModelNotFound", "message": "hf://org/name: 404"}]
ALL_REFUSED = [
    {"type": "Stalled", "status": "True", "reason": "AccessDenied", "message": "the token is refused"},
    {"type": "ModelFetched", "status": "False", "reason": "AccessDenied"},
    {"type": "AdaptersReady", "status": "False", "reason": "AccessDenied", "message": "0 of 1"},
]
FETCHED = {"type": "ModelFetched", "status": "True", "reason": "Succeeded"}
NAMED: dict[str, Any] = {"namespace": "team", "name": "qa"}


@pytest.fixture
async def asleep(team: world.World) -> AsyncIterator[world.World]:
    """Deployment qa with no replica; its last start took 40 s."""
    sleep(team)
    return team


def sleep(team: world.World, **status: Any) -> None:
    team.route(world.deployment("qa", adapters=["support-bot"], coldStart={"seconds": 40.0}, **status))


def wake(team: world.World) -> None:
    endpoints = world.endpoint_slice("qa", ["127.0.0.1"], team.server.port)
    team.route(world.deployment("qa", adapters=["support-bot"]), endpoints)


async def held(team: world.World, count: int = 1) -> None:
    await until(lambda: queued(team) == count, f"{count} requests to be held")


def queued(team: world.World) -> int:
    return sum(each.queued for each in team.load().deployments)


def ask(team: world.World, number: int = 0, stream: bool = False) -> asyncio.Task[bytes]:
    fields = {"model": "qa", "stream": stream, "messages": order(do="answer"), "seed": number}
    return asyncio.create_task(raw(team.port, post(CHAT, json.dumps(fields).encode(), "connection: close\r\n")))


async def test_the_first_to_come_is_the_first_to_go() -> None:
    queue, order_of_going = Queue(), list[int]()

    async def wait(number: int) -> None:
        held = Held(100, number)
        queue.enter(held)
        await held.done
        order_of_going.append(number)

    waiting = [asyncio.create_task(wait(number)) for number in range(5)]
    await until(lambda: len(queue) == 5, "all to wait")
    assert (queue.bytes, queue.waited(7.0)) == (500, 7.0)
    while queue.waiting:
        queue.next()
    await asyncio.gather(*waiting)
    assert order_of_going == [0, 1, 2, 3, 4]


async def test_requests_are_held_and_released(asleep: world.World) -> None:
    asking = []
    for number in range(5):
        asking.append(ask(asleep, number))
        await held(asleep, number + 1)
    load = asleep.load().deployments[0]
    assert (load.queued, load.ongoing, load.requests) == (5, 0, 0)
    assert load.unserved_seconds >= 0
    wake(asleep)
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in await asyncio.gather(*asking))
    assert sorted(seen.body["seed"] for seen in asleep.server.seen) == [0, 1, 2, 3, 4]
    load = asleep.load().deployments[0]
    assert (load.queued, load.unserved_seconds, load.requests, load.errors) == (0, 0.0, 5, 0)
    assert asleep.measures.held == {(("team", "qa"), "released"): 5}


async def test_an_adapter_is_woken_under_the_name_that_it_has_then(openai: AsyncOpenAI, asleep: world.World) -> None:
    asking = asyncio.create_task(openai.chat.completions.create(model="support-bot", messages=order(do="answer")))
    await held(asleep)
    newer = world.deployment("qa", adapters=["support-bot"])
    newer["status"]["adapters"][0]["engineName"] = "support-bot@ffffffffffff"
    asleep.route(newer, world.endpoint_slice("qa", ["127.0.0.1"], asleep.server.port))
    assert (await asking).model == "support-bot@ffffffffffff"


async def test_the_hold_counts_in_what_the_user_feels(openai: AsyncOpenAI, asleep: world.World) -> None:
    async def tokens() -> list[str | None]:
        stream = await openai.chat.completions.create(model="qa", messages=order(do="answer"), stream=True)
        return [chunk.choices[0].delta.content async for chunk in stream]

    asking = asyncio.create_task(tokens())
    await held(asleep)
    await asyncio.sleep(0.3)
    wake(asleep)
    assert await asking == ["", " t0", " t1", " t2", None]
    await until(lambda: asleep.load().deployments[0].requests == 1, "the request to be counted")
    ttft = asleep.load().deployments[0].ttft
    assert ttft is not None
    assert ttft.sum >= 0.3


@pytest.mark.parametrize("hold", [HoldSettings(max_requests=2)])
async def test_a_full_queue_is_429_with_the_time_of_a_start(openai: AsyncOpenAI, asleep: world.World) -> None:
    waiting = [ask(asleep), ask(asleep)]
    await held(asleep, 2)
    with pytest.raises(sdk.RateLimitError, match="2 requests wait") as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    assert caught.value.code == "queue_full"
    assert 30 <= int(caught.value.response.headers["retry-after"]) <= 40
    wake(asleep)
    await asyncio.gather(*waiting)
    assert (await openai.chat.completions.create(model="qa", messages=order(do="answer"))).usage is not None


@pytest.mark.parametrize("hold", [HoldSettings(max_bytes=3000)])
async def test_the_queue_is_bounded_in_bytes_too(openai: AsyncOpenAI, asleep: world.World) -> None:
    small = asyncio.create_task(openai.chat.completions.create(model="qa", messages=order(do="answer", pad="x" * 1000)))
    await held(asleep)
    with pytest.raises(sdk.RateLimitError):
        await openai.chat.completions.create(model="qa", messages=order(do="answer", pad="x" * 2000))
    small.cancel()
    await held(asleep, 0)


@pytest.mark.parametrize("hold", [HoldSettings(max_seconds=0.3)])
async def test_past_the_time_it_is_503(openai: AsyncOpenAI, asleep: world.World) -> None:
    with pytest.raises(sdk.InternalServerError, match="was held for") as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    assert (caught.value.status_code, caught.value.code) == (503, "model_not_ready")
    assert 30 <= int(caught.value.response.headers["retry-after"]) <= 40
    assert queued(asleep) == 0
    assert asleep.measures.held == {(("team", "qa"), "model_not_ready"): 1}


@pytest.mark.parametrize("hold", [QUICK])
async def test_a_stream_gets_heartbeats_and_then_its_answer(openai: AsyncOpenAI, asleep: world.World) -> None:
    plain = ask(asleep, stream=True)
    client = asyncio.create_task(_text(openai))
    await held(asleep, 2)
    await asyncio.sleep(0.3)
    wake(asleep)
    answer = await plain
    assert answer.count(b"HTTP/1.1") == 1
    assert b"content-type: text/event-stream" in answer
    assert len(re.findall(rb": waiting for a replica of qa, \d+ s so far\n\n", answer)) >= 2
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert await client == " t0 t1 t2", "OpenAI's client skips the comments"


async def _text(openai: AsyncOpenAI) -> str:
    stream = await openai.chat.completions.create(model="qa", messages=order(do="answer"), stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


@pytest.mark.parametrize("hold", [HoldSettings(max_seconds=0.4, heartbeat_seconds=0.05)])
async def test_after_a_heartbeat_a_failure_is_an_event(openai: AsyncOpenAI, asleep: world.World) -> None:
    answer = await ask(asleep, stream=True)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"data: ") == 1
    assert answer.endswith(b"\r\n0\r\n\r\n"), "the error is the whole answer, so it has a proper end"
    stream = await openai.chat.completions.create(model="qa", messages=order(do="answer"), stream=True)
    with pytest.raises(sdk.APIError, match="was held for"):
        async for _ in stream:
            pass
    assert asleep.load().deployments[0].errors == 2


@pytest.mark.parametrize("hold", [QUICK])
@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (order(do="error", status=400, body={"error": {"message": "too long", "type": "BadRequestError"}}), "too long"),
        (order(do="break", after=0), "The model server failed"),
    ],
)
async def test_after_a_heartbeat_the_server_s_refusal_is_an_event(
    openai: AsyncOpenAI, asleep: world.World, messages: Any, words: str
) -> None:
    asking = asyncio.create_task(openai.chat.completions.create(model="qa", messages=messages, stream=True))
    stream = await asking
    wake(asleep)
    with pytest.raises(sdk.APIError, match=words):
        async for _ in stream:
            pass


async def test_a_client_that_leaves_gives_its_place_up(asleep: world.World) -> None:
    asking = [ask(asleep, number) for number in range(3)]
    await held(asleep, 3)
    asking[1].cancel()
    await held(asleep, 2)
    asking[0].cancel()
    asking[2].cancel()
    await held(asleep, 0)
    assert asleep.proxy.holds.queues == {}
    await until(lambda: asleep.state.buffered == 0, "their bodies to be given back")
    assert next(iter(asleep.measures.series.values())).codes == {"499": 3}


async def test_a_stalled_deployment_is_told_at_once(openai: AsyncOpenAI, asleep: world.World) -> None:
    asking = asyncio.create_task(openai.chat.completions.create(model="qa", messages=order(do="answer")))
    await held(asleep)
    sleep(asleep, conditions=MODEL_STALL)
    for attempt in (asking, openai.chat.completions.create(model="qa", messages=order(do="answer"))):
        with pytest.raises(sdk.InternalServerError, match="ModelNotFound: hf://org/name: 404") as caught:
            await attempt
        assert (caught.value.status_code, caught.value.code) == (503, "model_stalled")
        assert caught.value.response.headers["retry-after"] == "60"


async def test_a_deployment_that_goes_is_404(openai: AsyncOpenAI, asleep: world.World) -> None:
    asking = asyncio.create_task(openai.chat.completions.create(model="qa", messages=order(do="answer")))
    await held(asleep)
    asleep.route(world.deployment("other"))
    with pytest.raises(sdk.NotFoundError):
        await asking


async def test_a_key_that_is_taken_away_while_it_waits(openai: AsyncOpenAI, asleep: world.World) -> None:
    asking = asyncio.create_task(openai.chat.completions.create(model="qa", messages=order(do="answer")))
    await held(asleep)
    closed = world.deployment("qa", access={"keys": [{"name": "other", "hash": world.OTHER_HASH}]})
    asleep.route(closed, world.endpoint_slice("qa", ["127.0.0.1"], asleep.server.port))
    with pytest.raises(sdk.AuthenticationError):
        await asking
    assert asleep.server.seen == []


async def test_the_end_of_the_gateway_answers_all(openai: AsyncOpenAI, asleep: world.World) -> None:
    asking = asyncio.create_task(openai.chat.completions.create(model="qa", messages=order(do="answer")))
    await held(asleep)
    asleep.proxy.drain()
    for attempt in (asking, openai.chat.completions.create(model="qa", messages=order(do="answer"))):
        with pytest.raises(sdk.InternalServerError, match="being replaced") as caught:
            await attempt
        assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("limits", [Limits(settle_seconds=20.0)])
async def test_a_replica_that_goes_while_it_is_asked(openai: AsyncOpenAI, team: world.World) -> None:
    """The table still names a pod that is gone; then it names none; then another one comes."""
    team.route(world.deployment("qa"), world.endpoint_slice("qa", ["127.0.0.2"], team.server.port))
    asking = asyncio.create_task(openai.chat.completions.create(model="qa", messages=order(do="answer")))
    await until(lambda: team.measures.upstream_failures.get("connect", 0) == 1, "the refusal")
    sleep(team)
    await held(team)
    load = team.load().deployments[0]
    assert (load.queued, load.ongoing) == (1, 0)
    wake(team)
    assert (await asking).choices[0].message.content == "Paris."
    load = team.load().deployments[0]
    assert (load.queued, load.ongoing, load.requests, load.errors) == (0, 0, 1, 0)


async def test_other_deployments_are_not_held_up(team: world.World) -> None:
    endpoints = world.endpoint_slice("other", ["127.0.0.1"], team.server.port)
    team.route(world.deployment("qa"), world.deployment("other"), endpoints)
    waiting = ask(team)
    await held(team)
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {world.KEY}"}) as client:
        body = {"model": "other", "messages": order(do="answer")}
        assert (await client.post(f"{team.url}/chat/completions", json=body)).status_code == 200
    assert not waiting.done()
    waiting.cancel()


@pytest.mark.parametrize(
    ("start", "waited", "seconds"),
    [(0, 0, 10), (40, 0, 40), (40, 25, 15), (40, 39, 10), (40, 400, 10), (0.5, 3, 1), (5000, 0, 600)],
)
def test_retry_after(start: float, waited: float, seconds: int) -> None:
    assert retry_after(start, waited) == seconds


@pytest.mark.parametrize(
    ("conditions", "stalled"),
    [
        ([], ""),
        ([{"type": "Stalled", "status": "False", "reason": "x", "message": "y"}], ""),
        (MODEL_STALL, "ModelNotFound: hf://org/name: 404"),
        (ADAPTER_STALL, ""),
        ([*ADAPTER_STALL, FETCHED], ""),
        ([*ALL_REFUSED], "AccessDenied: the token is refused"),
        ([*ALL_REFUSED[:1], ALL_REFUSED[2], FETCHED], ""),  # the adapter's alone
        (HELD_BACK, ""),
        (
            [*MODEL_STALL, {"type": "AdaptersReady", "status": "True", "reason": "Ready"}],
            "ModelNotFound: hf://org/name: 404",
        ),
        ([{"type": "Stalled", "status": "True", "reason": "RolledBack", "message": "errors rose"}], ""),
        ([{"type": "Stalled", "status": "True", "reason": "NameTaken", "message": "belongs to another"}], ""),
    ],
)
def test_what_is_not_worth_waiting_for(conditions: list[dict[str, str]], stalled: str) -> None:
    found = parse_deployment({"metadata": NAMED, "status": {"conditions": conditions, "coldStart": {"seconds": 12.5}}})
    assert (found.stalled, found.start_seconds) == (stalled, 12.5)


@pytest.mark.parametrize("conditions", [ALL_REFUSED, ALL_REFUSED[:2]], ids=["adapters too", "the model alone"])
def test_what_serves_wakes_while_another_model_cannot_be_had(conditions: list[dict[str, str]]) -> None:
    """The operator scales the revision that there is, and says of the spec that it is stalled."""
    status = {"conditions": conditions, "revisions": [{"name": "r1", "replicas": 0}]}
    assert parse_deployment({"metadata": NAMED, "status": status}).stalled == ""


@pytest.mark.parametrize(("there", "words"), [([], "AccessDenied: refused"), ([revision(replicas=0)], "")])
def test_one_refused_token_in_the_operators_own_words(there: list[Any], words: str) -> None:
    model = Verdict(State.STALLED, "AccessDenied", "refused")
    adapter = Resolved("bot", reason="AccessDenied", message="refused", stalled=True)
    seen = facts(model=model, resolved=[adapter], revisions=there, judged=None, pods=[], servers={}, replicas=0)
    status = summarize(spec_of(), seen).model_dump(by_alias=True, mode="json")
    assert parse_deployment({"metadata": NAMED, "status": status}).stalled == words
