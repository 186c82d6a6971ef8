"""Embeddings, classes and scores through the gateway: each path to the engine's own, with keys, limits and usage."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gateway_world as world
import httpx
import openai as sdk
import pytest
from gateway_world import HASH, KEY, OTHER_HASH, OTHER_KEY, POOLED, until
from openai import AsyncOpenAI

from tuneloop_gateway.proxy import OPERATIONS, OTHERS

ASKED: dict[str, dict[str, Any]] = {
    "embeddings": {"model": "qa", "input": ["a word", "another"]},
    "classify": {"model": "qa", "input": "buy now"},
    "score": {"model": "qa", "text_1": "a query", "text_2": ["one", "two"]},
}
ENGINE = {"embeddings": "/v1/embeddings", "classify": "/classify", "score": "/v1/score"}
KEYS = [{"name": "app", "hash": HASH}, {"name": "narrow", "hash": OTHER_HASH, "models": ["elsewhere"]}]


@pytest.fixture
async def client(team: world.World) -> AsyncIterator[httpx.AsyncClient]:
    """One that speaks plain HTTP: OpenAI's has no classes and no scores."""
    async with httpx.AsyncClient(base_url=team.url, headers={"authorization": f"Bearer {KEY}"}, timeout=30) as found:
        yield found


def limited(team: world.World, **limits: int) -> None:
    access = {"keys": KEYS, "limits": limits}
    team.route(world.deployment("qa", access=access), world.endpoint_slice("qa", ["127.0.0.1"], team.server.port))


@pytest.mark.parametrize("name", ASKED)
async def test_each_path_leads_to_the_engine_s_own(client: httpx.AsyncClient, team: world.World, name: str) -> None:
    answer = await client.post(f"/{name}", json=ASKED[name])
    assert answer.status_code == 200
    assert answer.json()["data"] == [POOLED[ENGINE[name]]]
    (seen,) = team.server.seen
    assert (seen.path, seen.body) == (ENGINE[name], ASKED[name])


@pytest.mark.parametrize("name", ASKED)
async def test_usage_is_counted(client: httpx.AsyncClient, team: world.World, name: str) -> None:
    for _ in range(2):
        await client.post(f"/{name}", json=ASKED[name])
    await until(lambda: team.load().deployments[0].requests == 2, "both to be counted")
    load = team.load().deployments[0]
    assert (load.prompt_tokens, load.completion_tokens, load.errors, load.ongoing) == (14, 0, 0, 0)
    assert [labels.operation for labels in team.measures.series] == [name]
    assert load.e2e is not None
    assert load.ttft is not None
    assert (load.e2e.counts[-1], load.ttft.counts[-1]) == (2, 0), "there is no first token"
    used = team.proxy.ledger.usage.used[("team", "qa", "qa", "app")]
    assert (used.requests, used.prompt, used.completion) == (2, 14, 0)
    line = team.access_log()[0]
    assert (line["status"], line["promptTokens"], line["ttft"]) == (200, 7, None)


@pytest.mark.parametrize("name", ASKED)
async def test_keys_and_limits_hold(client: httpx.AsyncClient, team: world.World, name: str) -> None:
    limited(team, requestsPerMinute=2, tokensPerMinute=1000)
    stranger = await client.post(f"/{name}", json=ASKED[name], headers={"authorization": "Bearer tl-wrong"})
    narrow = await client.post(f"/{name}", json=ASKED[name], headers={"authorization": f"Bearer {OTHER_KEY}"})
    found = [(await client.post(f"/{name}", json=ASKED[name])) for _ in range(3)]
    assert [answer.status_code for answer in (stranger, narrow, *found)] == [401, 403, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in found] == ["1", "0", "0"]
    assert found[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert len(team.server.seen) == 2


async def test_openai_s_client_reads_embeddings(openai: AsyncOpenAI) -> None:
    answer = await openai.embeddings.create(model="qa", input="a word")
    assert answer.data[0].embedding == [0.5, -0.5]
    assert answer.usage.prompt_tokens == 7
    with pytest.raises(sdk.NotFoundError, match="The model 'none' does not exist here"):
        await openai.embeddings.create(model="none", input="a word")


async def test_a_model_of_another_kind_says_so_in_the_server_s_words(
    client: httpx.AsyncClient, team: world.World
) -> None:
    words = "This model generates text: ask /v1/chat/completions or /v1/completions."
    body = {"error": {"message": words, "type": "invalid_request_error", "code": 400}}
    team.server.always = {"do": "error", "status": 400, "body": body}
    answer = await client.post("/embeddings", json=ASKED["embeddings"])
    assert (answer.status_code, answer.json()) == (400, body)


async def test_it_is_held_like_any_other(client: httpx.AsyncClient, team: world.World) -> None:
    team.route(world.deployment("qa"))
    asking = asyncio.create_task(client.post("/score", json=ASKED["score"]))
    await until(lambda: [each.queued for each in team.load().deployments] == [1], "it to be held")
    team.route(world.deployment("qa"), world.endpoint_slice("qa", ["127.0.0.1"], team.server.port))
    assert (await asking).json()["data"] == [POOLED["/v1/score"]]


async def test_the_404_of_a_path_names_every_path(client: httpx.AsyncClient) -> None:
    answer = await client.post("/rerank", json=ASKED["score"])
    assert answer.status_code == 404
    words = answer.json()["error"]["message"]
    assert all(f"/NAMESPACE/v1/{name.decode()}" in words for name in (*OPERATIONS, *OTHERS))
    assert (await client.get("/embeddings")).headers["allow"] == "POST"
