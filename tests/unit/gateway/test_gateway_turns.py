"""Replicas that are busy: what is beyond their room waits in the gateway, and the keys take turns."""

import asyncio
import json
from typing import Any

import gateway_world as world
import openai as sdk
import pytest
from gateway_world import HASH, KEY, OTHER_HASH, OTHER_KEY, order, post, raw, until
from openai import AsyncOpenAI

from tuneloop_core.settings import HoldSettings
from tuneloop_gateway.routes import parse_deployment
from tuneloop_gateway.turns import Turns, room_of

CHAT = "/team/v1/chat/completions"
QA = ("team", "qa")
ACCESS = {"keys": [{"name": "app", "hash": HASH}, {"name": "other", "hash": OTHER_HASH}]}
WAIT = {"do": "stream", "tokens": 1, "wait": True}


# ---- the counts ----


@pytest.mark.parametrize(
    ("resources", "arguments", "replicas", "default", "room"),
    [
        ({}, [], 1, 1024, 1024),
        ({"accelerators": 1}, [], 3, 10, 30),
        ({"accelerators": 1}, ["--max-num-seqs=16"], 2, 1024, 42),
        ({"accelerators": 0}, [], 1, 1024, 161),  # 128 and a quarter more
        ({"accelerators": 0}, [], 2, 10, 20),
        ({"accelerators": 0}, ["--max-num-seqs=256"], 1, 1024, 321),
        ({}, ["--max-num-seqs=16"], 0, 9, 0),
    ],
)
def test_room(resources: dict[str, int], arguments: list[str], replicas: int, default: int, room: int) -> None:
    raw_deployment = world.deployment("qa")
    raw_deployment["spec"] |= {"resources": resources, "engine": {"extraArgs": arguments}}
    found = parse_deployment(raw_deployment)
    assert room_of(replicas, found.sequences, default, on_cpu=found.on_cpu) == room


def test_places_are_taken_and_given_back() -> None:
    turns = Turns()
    assert not turns.begin(QA), "a deployment without replicas has no place"
    turns.set_room({QA: 2})
    assert [turns.begin(QA) for _ in range(3)] == [True, True, False]
    turns.end(QA)
    assert turns.begin(QA)
    assert turns.begin(QA, anyway=True)
    turns.set_room({QA: 1})
    for _ in range(3):
        assert not turns.begin(QA)
        turns.end(QA)
    assert turns.begin(QA)


@pytest.mark.parametrize(
    ("arguments", "sequences"),
    [
        ([], 0),
        (["--max-num-seqs=64"], 64),
        (["--seed=1", "--max-num-seqs=8", "--max-num-seqs=9"], 9),
        (["--max-num-seqs=many"], 0),
    ],
)
def test_what_an_engine_runs_at_once(arguments: list[str], sequences: int) -> None:
    raw_deployment = world.deployment("qa")
    raw_deployment["spec"]["engine"] = {"extraArgs": arguments}
    assert parse_deployment(raw_deployment).sequences == sequences


# ---- on the wire ----


@pytest.fixture
def hold() -> HoldSettings:
    """One request at a time, and room for six to wait."""
    return HoldSettings(ongoing_per_replica=1, max_requests=6)


@pytest.fixture
async def busy(team: world.World) -> world.World:
    """Deployment qa, for two keys; its replica streams until the gate opens."""
    team.server.always = WAIT
    team.route(world.deployment("qa", access=ACCESS), world.endpoint_slice("qa", ["127.0.0.1"], team.server.port))
    return team


def ask(team: world.World, number: int, key: str = KEY, **more: Any) -> asyncio.Task[bytes]:
    """A request of about 800 tokens, so that a turn is one of them."""
    fields = {"model": "qa", "stream": True, "messages": order(), "max_tokens": 700, "seed": number} | more
    request = post(CHAT, json.dumps(fields).encode(), "connection: close\r\n", key)
    return asyncio.create_task(raw(team.port, request))


def waiting(team: world.World) -> int:
    return sum(each.queued for each in team.load().deployments)


async def first(team: world.World) -> asyncio.Task[bytes]:
    """One that has the only place."""
    asking = ask(team, 0)
    await until(lambda: len(team.server.seen) == 1, "the first request to reach the replica")
    return asking


async def wait_for(team: world.World, asking: list[asyncio.Task[bytes]], number: int, key: str = KEY) -> None:
    """One more that waits."""
    before = waiting(team)
    asking.append(ask(team, number, key))
    await until(lambda: waiting(team) == before + 1, f"request {number} to wait")


def seeds(team: world.World) -> list[int]:
    return [seen.body["seed"] for seen in team.server.seen]


async def test_keys_take_turns_when_the_replica_is_busy(busy: world.World) -> None:
    asking = [await first(busy)]
    for number in (1, 2, 3, 4):
        await wait_for(busy, asking, number)
    for number in (11, 12):
        await wait_for(busy, asking, number, OTHER_KEY)
    assert seeds(busy) == [0], "the replica has what it can do"
    assert busy.load().deployments[0].ongoing == 1
    busy.server.gate.set()
    answers = await asyncio.gather(*asking)
    assert all(answer.startswith(b"HTTP/1.1 200") and b"[DONE]" in answer for answer in answers)
    assert seeds(busy) == [0, 1, 11, 2, 12, 3, 4]
    assert (busy.proxy.holds.queues, waiting(busy)) == ({}, 0)
    assert busy.measures.held == {(QA, "released"): 6}


async def test_the_key_with_the_most_gives_way_where_the_queue_is_full(busy: world.World) -> None:
    asking = [await first(busy)]
    for number in range(1, 7):
        await wait_for(busy, asking, number)
    refused = await ask(busy, 7)
    assert refused.startswith(b"HTTP/1.1 429")
    assert b"All replicas of 'qa' are busy and 6 requests wait" in refused
    assert b"retry-after: 2" in refused
    other = ask(busy, 11, OTHER_KEY)
    given_up = await asking[6]
    assert given_up.startswith(b"HTTP/1.1 429"), "the newest of the key with six"
    busy.server.gate.set()
    answers = await asyncio.gather(*asking[:6], other)
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert seeds(busy) == [0, 1, 11, 2, 3, 4, 5]


async def test_who_leaves_while_it_waits_costs_nobody_a_place(busy: world.World) -> None:
    asking = [await first(busy)]
    for number in (1, 2, 3):
        await wait_for(busy, asking, number)
    asking[1].cancel()
    await until(lambda: waiting(busy) == 2, "the one that left to be gone")
    busy.server.gate.set()
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in await asyncio.gather(asking[0], *asking[2:]))
    assert seeds(busy) == [0, 2, 3]
    busy.server.gate.clear()
    asking.append(ask(busy, 4))
    await until(lambda: seeds(busy)[-1] == 4, "the place to be free again")
    busy.server.gate.set()
    await asking[-1]


async def test_another_replica_makes_room(busy: world.World) -> None:
    asking = [await first(busy)]
    await wait_for(busy, asking, 1)
    second = world.ModelServer(always=WAIT)
    async with world.listening(second.application(), busy.server.port, "127.0.0.2"):
        endpoints = world.endpoint_slice("qa", ["127.0.0.1", "127.0.0.2"], busy.server.port)
        busy.route(world.deployment("qa", access=ACCESS), endpoints)
        await until(lambda: len(busy.server.seen) + len(second.seen) == 2, "the one that waits to go on")
        busy.server.gate.set()
        second.gate.set()
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in await asyncio.gather(*asking))


async def test_the_last_replica_goes_while_others_wait(busy: world.World) -> None:
    """Nobody's place is lost with it: they wait on, and go when it is back."""
    asking = [await first(busy)]
    for number in (1, 2):
        await wait_for(busy, asking, number)
    busy.route(world.deployment("qa", access=ACCESS))
    busy.server.gate.set()
    await asking[0]
    assert seeds(busy) == [0]
    busy.route(world.deployment("qa", access=ACCESS), world.endpoint_slice("qa", ["127.0.0.1"], busy.server.port))
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in await asyncio.gather(*asking))
    assert seeds(busy) == [0, 1, 2]


@pytest.mark.parametrize("hold", [HoldSettings(ongoing_per_replica=1, max_seconds=0.3)])
async def test_who_waits_too_long_is_told(busy: world.World, openai: AsyncOpenAI) -> None:
    asking = await first(busy)
    with pytest.raises(sdk.InternalServerError, match="All replicas of 'qa' are busy") as caught:
        await openai.chat.completions.create(model="qa", messages=order())
    assert caught.value.response.headers["retry-after"] == "2"
    busy.server.gate.set()
    assert (await asking).startswith(b"HTTP/1.1 200")


async def test_a_failed_request_gives_its_place_back(busy: world.World, openai: AsyncOpenAI) -> None:
    busy.server.always = {"do": "error", "status": 500, "body": "broken"}
    for _ in range(3):
        with pytest.raises(sdk.InternalServerError, match="The model server answered 500"):
            await openai.chat.completions.create(model="qa", messages=order())
    busy.server.always = {"do": "answer"}
    answer = await openai.chat.completions.create(model="qa", messages=order())
    assert answer.choices[0].message.content == "Paris."
    assert busy.measures.held == {}
