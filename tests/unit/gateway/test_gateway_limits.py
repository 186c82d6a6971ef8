"""Requests and tokens per minute of a key: the buckets alone, and what a client sees of them."""

import json

import gateway_world as world
import openai as sdk
import pytest
from gateway_world import HASH, KEY, OTHER_HASH, OTHER_KEY, order
from openai import AsyncOpenAI

from tuneloop_gateway.peers import ready_gateways
from tuneloop_gateway.ratelimit import ANSWER_TOKENS, Allowance, Bucket, Quota, duration, estimate
from tuneloop_gateway.routes import parse_slice
from tuneloop_gateway.usage import OTHER, SERIES_LIMIT, UsageCollector

KEYS = [{"name": "app", "hash": HASH}, {"name": "other", "hash": OTHER_HASH}]


# ---- the buckets ----


def test_a_minute_s_worth_at_once_and_then_the_rate() -> None:
    allowance = Allowance(Quota(requests=60), 1, 0.0)
    assert [allowance.reserve(1, 0.0)[0] for _ in range(61)] == [""] * 60 + ["requests"]
    assert allowance.reserve(1, 0.0) == ("requests", 1.0)
    assert [allowance.reserve(1, 10.0)[0] for _ in range(11)] == [""] * 10 + ["requests"], "one a second"
    assert [allowance.reserve(1, 1000.0)[0] for _ in range(61)] == [""] * 60 + ["requests"], (
        "never more than a minute's"
    )


def test_usage_settles_what_was_reserved() -> None:
    allowance = Allowance(Quota(tokens=1000), 1, 0.0)
    assert allowance.reserve(800, 0.0) == ("", 0.0)
    assert allowance.reserve(300, 0.0) == ("tokens", pytest.approx(6.0)), "100 are missing at 1000 a minute"
    allowance.settle(800, 100, 0.0)
    assert allowance.reserve(300, 0.0) == ("", 0.0)
    allowance.settle(300, 1600, 0.0)
    short, seconds = allowance.reserve(0, 0.0)
    assert (short, seconds) == ("tokens", pytest.approx(42.0)), "what was too little is paid by waiting"


def test_what_was_never_sent_gives_all_back_and_no_more() -> None:
    allowance = Allowance(Quota(requests=2, tokens=100), 1, 0.0)
    assert [allowance.reserve(50, 0.0)[0] for _ in range(3)] == ["", "", "requests"]
    allowance.give_back(50, 0.0)
    assert [allowance.reserve(50, 0.0)[0] for _ in range(2)] == ["", "requests"]
    for _ in range(3):
        allowance.give_back(50, 60.0)
    assert [allowance.reserve(50, 60.0)[0] for _ in range(3)] == ["", "", "requests"], "a minute's worth at most"


def test_more_than_a_minute_s_worth_passes_when_the_bucket_is_full() -> None:
    allowance = Allowance(Quota(tokens=100), 1, 0.0)
    assert allowance.reserve(5000, 0.0) == ("", 0.0)
    allowance.settle(5000, 100, 0.0)
    assert allowance.reserve(5000, 59.0) == ("tokens", pytest.approx(1.0))
    assert allowance.reserve(5000, 60.0) == ("", 0.0)


def test_nothing_is_taken_from_one_limit_when_the_other_is_short() -> None:
    allowance = Allowance(Quota(requests=10, tokens=100), 1, 0.0)
    assert allowance.reserve(100, 0.0)[0] == ""
    for _ in range(50):
        assert allowance.reserve(100, 0.0)[0] == "tokens"
    allowance.settle(100, 0, 0.0)
    assert [allowance.reserve(1, 0.0)[0] for _ in range(10)] == [""] * 9 + ["requests"]


def test_gateways_share_a_limit() -> None:
    allowance = Allowance(Quota(requests=100), 1, 0.0)
    for _ in range(50):
        allowance.reserve(1, 0.0)
    allowance.share_among(2)
    assert [allowance.reserve(1, 0.0)[0] for _ in range(26)] == [""] * 25 + ["requests"], "as full as before"


def test_a_limit_below_one_a_gateway_still_lets_something_pass() -> None:
    allowance = Allowance(Quota(requests=1), 2, 0.0)
    assert allowance.reserve(1, 0.0) == ("", 0.0)
    assert allowance.reserve(1, 0.0) == ("requests", pytest.approx(120.0)), "one in two minutes, and another elsewhere"


def test_a_bucket_in_debt_refills_from_there() -> None:
    bucket = Bucket(60.0, 0.0)
    bucket.level = -30.0
    bucket.refill(30.0)
    assert bucket.level == 0.0
    assert bucket.reset == 60.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, b"0ms"), (0.0201, b"21ms"), (1.0, b"1s"), (59.2, b"1m0s"), (360.0, b"6m0s"), (61, b"1m1s")],
)
def test_durations_are_worded_as_openai_words_them(seconds: float, words: bytes) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("fields", "size", "expected"),
    [
        ({"max_tokens": 100}, 400, 200),
        ({"max_tokens": 100, "max_completion_tokens": 50}, 0, 50),
        ({}, 0, ANSWER_TOKENS),
        ({"max_tokens": 10, "n": 3}, 40, 40),
        ({"max_tokens": "many", "n": -1}, 0, ANSWER_TOKENS),
        ({"max_tokens": True}, 0, ANSWER_TOKENS),
        ({"max_tokens": 10**18}, 0, 10**9),
    ],
)
def test_estimates(fields: dict[str, object], size: int, expected: int) -> None:
    assert estimate(fields, size) == expected


def test_the_ready_gateways_are_counted_by_their_service() -> None:
    def of(service: str, addresses: list[str]) -> dict[str, object]:
        found = world.endpoint_slice("x", addresses, 8080, "tuneloop-system")
        found["metadata"]["labels"]["kubernetes.io/service-name"] = service
        return found

    slices = [parse_slice(each) for each in (of("tuneloop-gateway", ["10.0.0.1", "10.0.0.2"]), of("x", ["10.0.0.3"]))]
    assert ready_gateways(slices, "tuneloop-gateway") == 2
    assert ready_gateways([], "tuneloop-gateway") == 1


def test_series_of_usage_are_bounded() -> None:
    usage = UsageCollector()
    for number in range(SERIES_LIMIT + 50):
        usage.of(("team", "qa", "qa", f"key-{number}")).requests += 1
    assert usage.of(("team", "qa", "qa", "key-0")).requests == 1
    assert usage.used[("team", "qa", "qa", OTHER)].requests == 50
    usage.forget_all_but(set())
    assert not usage.used


# ---- on the wire ----


def limited(team: world.World, **limits: int) -> None:
    """Namespace team with these limits per key."""
    access = {"keys": KEYS, "limits": limits}
    team.route(world.deployment("qa", access=access), world.endpoint_slice("qa", ["127.0.0.1"], team.server.port))


async def test_the_headers_of_openai(openai: AsyncOpenAI, team: world.World) -> None:
    limited(team, requestsPerMinute=100, tokensPerMinute=10_000)
    create = openai.chat.completions.with_raw_response.create
    headers = (await create(model="qa", messages=order(do="answer"), max_tokens=10)).headers
    assert headers["x-ratelimit-limit-requests"] == "100"
    assert headers["x-ratelimit-remaining-requests"] == "99"
    assert headers["x-ratelimit-reset-requests"].endswith("ms")
    assert headers["x-ratelimit-limit-tokens"] == "10000"
    assert 9_900 <= int(headers["x-ratelimit-remaining-tokens"]) < 9_990
    assert headers["x-ratelimit-reset-tokens"].endswith("ms")
    streamed = await openai.chat.completions.with_raw_response.create(
        model="qa", messages=order(do="stream", tokens=1), stream=True
    )
    assert streamed.headers["x-ratelimit-remaining-requests"] == "98"
    async for _ in streamed.parse():
        pass


async def test_without_limits_there_are_no_headers(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.with_raw_response.create(model="qa", messages=order(do="answer"))
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_a_key_over_its_limit_gets_429_and_another_does_not(openai: AsyncOpenAI, team: world.World) -> None:
    limited(team, requestsPerMinute=2)
    for _ in range(2):
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    with pytest.raises(sdk.RateLimitError, match="Key 'app' has used up its 2 requests per minute") as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    assert caught.value.code == "rate_limit_exceeded"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 30
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    async with AsyncOpenAI(base_url=team.url, api_key=OTHER_KEY, max_retries=0) as other:
        await other.chat.completions.create(model="qa", messages=order(do="answer"))
    assert len(team.server.seen) == 3
    assert team.measures.rejected == {("429", "rate_limit_exceeded"): 1}


async def test_a_key_for_one_model_gets_403_for_another(openai: AsyncOpenAI, team: world.World) -> None:
    access = {"keys": [{"name": "app", "hash": HASH, "models": ["support-bot"]}]}
    qa = world.deployment("qa", adapters=["support-bot"], access=access)
    team.route(qa, world.endpoint_slice("qa", ["127.0.0.1"], team.server.port))
    await openai.chat.completions.create(model="support-bot", messages=order(do="answer"))
    with pytest.raises(sdk.PermissionDeniedError, match="Models it opens here: support-bot") as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    assert (caught.value.code, caught.value.param) == ("model_not_allowed", "model")
    assert [model.id for model in (await openai.models.list()).data] == ["support-bot"]
    assert len(team.server.seen) == 1


async def test_tokens_are_settled_by_usage(openai: AsyncOpenAI, team: world.World) -> None:
    """Each answer uses 10 tokens and reserves over 40: eight reservations would be over 200, their usage is not."""
    limited(team, tokensPerMinute=200)
    create = openai.chat.completions.with_raw_response.create
    for _ in range(8):
        headers = (await create(model="qa", messages=order(do="answer"), max_tokens=40)).headers
    assert 60 < int(headers["x-ratelimit-remaining-tokens"]) < 160


async def test_a_key_in_debt_waits(openai: AsyncOpenAI, team: world.World) -> None:
    limited(team, tokensPerMinute=1)
    await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    with pytest.raises(sdk.RateLimitError, match="Key 'app' has used up its 1 tokens per minute") as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    assert 60 < int(caught.value.response.headers["retry-after"]) <= 600, "nine tokens of debt and one more"


async def test_usage_and_access_log(openai: AsyncOpenAI, team: world.World) -> None:
    limited(team, requestsPerMinute=2)
    await openai.chat.completions.create(model="qa", messages=[{"role": "user", "content": "word"}])
    stream = await openai.chat.completions.create(model="qa", messages=order(do="stream", tokens=5), stream=True)
    async for _ in stream:
        pass
    with pytest.raises(sdk.RateLimitError):
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    with pytest.raises(sdk.NotFoundError):
        await openai.chat.completions.create(model="none", messages=order(do="answer"))
    async with AsyncOpenAI(base_url=team.url, api_key="tl-wrong", max_retries=0) as stranger:
        with pytest.raises(sdk.AuthenticationError):
            await stranger.chat.completions.create(model="qa", messages=order(do="answer"))
    lines = team.access_log()
    assert [line["status"] for line in lines] == [200, 200, 429, 404, 401]
    first, second = lines[:2]
    who = {"namespace": "team", "deployment": "qa", "model": "qa", "engineName": "qa", "key": "app"}
    assert first.items() >= (who | {"promptTokens": 7, "completionTokens": 3, "ttft": None, "failure": ""}).items()
    assert first["replica"] == f"127.0.0.1:{team.server.port}"
    assert second.items() >= (who | {"promptTokens": 7, "completionTokens": 5, "stream": True}).items()
    assert 0 < second["ttft"] <= second["e2e"]
    assert len({line["id"] for line in lines[:3]}) == 3
    text = json.dumps(lines)
    assert "word" not in text, "no prompt"
    assert KEY not in text
    assert "tl-wrong" not in text
    used = team.proxy.ledger.usage.used[("team", "qa", "qa", "app")]
    assert (used.requests, used.limited, used.prompt, used.completion) == (2, 1, 14, 8)
