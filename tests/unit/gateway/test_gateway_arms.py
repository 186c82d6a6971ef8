"""A new version's share of the traffic, and feedback that finds the version it is about."""

from typing import Any

import httpx
import pytest
from gateway_world import (
    DIGEST12,
    KEY,
    ModelServer,
    deployment,
    endpoint_slice,
    gateway,
    listening,
    order,
    server_tokens,
)

from tuneloop_gateway import arms
from tuneloop_gateway.config import Limits
from tuneloop_gateway.load import gateway_load
from tuneloop_gateway.routes import Route, build_table, parse_deployment, parse_slice

OLD, NEW = f"bot@{DIGEST12}", "bot@" + "f" * 12


def adapter_canary(weight: int) -> dict[str, Any]:
    share = {"engineName": NEW, "weight": weight}
    models = [{"name": "chat", "engineName": "chat"}, {"name": "bot", "engineName": OLD, "canary": share}]
    return deployment("chat", adapters=["bot"], models=models)


def revision_canary(weight: int) -> dict[str, Any]:
    share = {"engineName": "chat", "revision": "r2", "weight": weight}
    return deployment("chat", models=[{"name": "chat", "engineName": "chat", "canary": share}])


def two_revisions() -> dict[str, Any]:
    found = endpoint_slice("chat", ["10.0.0.1", "10.0.0.2"], 8000)
    for number, each in enumerate(found["endpoints"], 1):
        each["targetRef"] = {"kind": "Pod", "name": f"chat-r{number}-5d5f-x"}
    return found


def route(raw: dict[str, Any], model: str, slices: dict[str, Any]) -> Route:
    table = build_table([parse_deployment(raw)], [parse_slice(slices)], allow_without_keys=False)
    return table["team"].models[model]


def chosen(found: Route, users: int = 2000) -> list[Route]:
    return [arms.choose(found, {"user": f"user-{number}"}, b"") for number in range(users)]


@pytest.mark.parametrize("weight", [0, 1, 10, 50, 100])
def test_the_share_is_the_weight(weight: int) -> None:
    found = chosen(route(adapter_canary(weight), "bot", endpoint_slice("chat", ["10.0.0.1"], 8000)))
    share = sum(each.engine_name == NEW for each in found) / len(found)
    assert share == pytest.approx(weight / 100, abs=0.03)


def test_who_was_in_a_smaller_share_stays_in_a_greater_one() -> None:
    slices = endpoint_slice("chat", ["10.0.0.1"], 8000)
    few, many = (chosen(route(adapter_canary(weight), "bot", slices)) for weight in (10, 50))
    assert all(later.engine_name == NEW for now, later in zip(few, many, strict=True) if now.engine_name == NEW)


def test_another_version_meets_other_users() -> None:
    salts = (b"team/bot/bot@a/", b"team/bot/bot@b/")
    places = [[arms.place(salt, b"user:%d" % number) < 1000 for number in range(2000)] for salt in salts]
    both = sum(first and second for first, second in zip(*places, strict=True))
    assert both < 60, "a tenth of a tenth of 2000 users are in both shares"


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        pytest.param(
            {"user": "u"}, {"user": "u", "messages": [user("b")]}, True, id="a user is one, whatever is asked"
        ),
        pytest.param({"user": "u"}, {"user": "v"}, False, id="two users"),
        pytest.param(
            {"messages": [system("s"), user("a")]},
            {"messages": [system("s"), user("a"), {"role": "assistant", "content": "x"}, user("b")]},
            True,
            id="turns of a conversation",
        ),
        pytest.param({"messages": [user("a")]}, {"messages": [user("b")]}, False, id="two conversations"),
        pytest.param({"prompt": "p"}, {"prompt": "p"}, False, id="prompts are split by request"),
        pytest.param({"user": 3, "messages": "x"}, {}, False, id="nonsense is split by request"),
    ],
)
def test_who_asks(first: dict[str, Any], second: dict[str, Any], same: bool) -> None:
    assert (arms.identity(first, b"r1") == arms.identity(second, b"r2")) is same


def test_a_revision_is_its_pods() -> None:
    found = route(revision_canary(100), "chat", two_revisions())
    assert found.addresses == (("10.0.0.1", 8000),)
    taken = arms.choose(found, {}, b"x")
    assert (taken.addresses, taken.revision, taken.engine_name) == ((("10.0.0.2", 8000),), "r2", "chat")
    loading = route(revision_canary(0), "chat", two_revisions())
    assert arms.choose(loading, {}, b"x").addresses == (("10.0.0.1", 8000),), "a canary that loads takes nothing"
    assert arms.addresses(loading) == (("10.0.0.1", 8000), ("10.0.0.2", 8000))


def test_a_canary_without_a_ready_pod_takes_nothing() -> None:
    alone = endpoint_slice("chat", ["10.0.0.1"], 8000)
    alone["endpoints"][0]["targetRef"] = {"name": "chat-r1-5d5f-x"}
    found = arms.choose(route(revision_canary(100), "chat", alone), {}, b"x")
    assert (found.addresses, found.revision) == ((("10.0.0.1", 8000),), "")


def test_a_tag_is_found_again_in_an_answers_id() -> None:
    found = route(adapter_canary(50), "bot", endpoint_slice("chat", ["10.0.0.1"], 8000))
    for each in chosen(found, 20):
        identity = f"chatcmpl-{arms.tagged(b'abc-tl00000000', each).decode()}"
        arm = arms.find("team", [found], identity)
        assert arm == arms.Arm("chat", "bot", each.engine_name, "")
        assert arms.find("other", [found], identity) is None
    assert arms.find("team", [found], "chatcmpl-123") is None


async def test_answers_and_feedback_are_counted_by_version() -> None:
    server = ModelServer()
    async with (
        listening(server.application()) as port,
        gateway(Limits(), server, server_tokens()) as world,
        httpx.AsyncClient(base_url=f"{world.url}/", headers={"authorization": f"Bearer {KEY}"}) as client,
    ):
        world.route(adapter_canary(50), endpoint_slice("chat", ["127.0.0.1"], port))
        for number in range(20):
            asked = {"model": "bot", "user": f"u{number}", "messages": order(do="answer")}
            answer = (await client.post("chat/completions", json=asked)).json()
            scored = await client.post("feedback", json={"id": answer["id"], "score": 0 if number % 2 else 1})
            assert scored.status_code == 200
            assert scored.json()["version"] == server.seen[-1].body["model"], "the version that answered"
        models = {each.engine_name: each for each in gateway_load(world.measures).deployments[0].models}
        assert set(models) == {OLD, NEW}
        for name, each in models.items():
            assert each.requests == sum(seen.body["model"] == name for seen in server.seen)
            assert each.feedback_good + each.feedback_bad == each.requests
        assert sum(each.feedback_good for each in models.values()) == 10
        await refusals(client)
        world.route(deployment("chat", adapters=["bot"]), endpoint_slice("chat", ["127.0.0.1"], port))
        assert OLD in {each.engine_name for each in gateway_load(world.measures).deployments[0].models}
        assert NEW not in {each.engine_name for each in gateway_load(world.measures).deployments[0].models}


async def refusals(client: httpx.AsyncClient) -> None:
    cases: list[tuple[Any, int, str]] = [
        ({"id": "chatcmpl-1-tl00000000", "score": 1}, 404, "response_not_found"),
        ({"score": 1}, 400, "invalid_value"),
        ({"id": "x", "score": 2}, 400, "invalid_value"),
        ({"id": "x", "score": "good"}, 400, "invalid_value"),
        ([], 400, "invalid_json"),
    ]
    for body, status, code in cases:
        found = await client.post("feedback", json=body)
        assert (found.status_code, found.json()["error"]["code"]) == (status, code)
    assert (await client.get("feedback")).status_code == 405
    assert (await client.post("feedback", json={}, headers={"authorization": "Bearer no"})).status_code == 401
