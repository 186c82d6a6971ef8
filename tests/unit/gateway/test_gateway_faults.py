"""Servers that refuse, break, drain and die, on real sockets: what another replica can still save is saved."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator

import gateway_world as world
import openai as sdk
import pytest
from gateway_world import order, post, raw, until
from openai import AsyncOpenAI

from tuneloop_gateway.config import Limits
from tuneloop_gateway.outlier import FAILURES, Rules
from tuneloop_gateway.retry import RESERVE

CHAT = "/team/v1/chat/completions"
BUSY = {"do": "error", "status": 503, "body": {"error": {"message": "draining"}}}


@pytest.fixture
def limits() -> Limits:
    """Ejections that a test can wait for."""
    return Limits(outlier=Rules(eject_seconds=0.2), prefix_bytes=0)


@pytest.fixture
async def second(server: world.ModelServer, team: world.World) -> AsyncIterator[world.ModelServer]:
    """Another replica of qa, on another address and the same port."""
    found = world.ModelServer()
    async with world.listening(found.application(), server.port, "127.0.0.2"):
        team.route(world.deployment("qa"), world.endpoint_slice("qa", ["127.0.0.1", "127.0.0.2"], server.port))
        yield found


async def ask(openai: AsyncOpenAI, **more: object) -> str:
    answer = await openai.chat.completions.create(model="qa", messages=order(do="answer", **more))
    return str(answer.choices[0].message.content)


def codes_and_failures(team: world.World) -> tuple[dict[str, int], int]:
    (series,) = team.measures.series.values()
    return series.codes, series.errors


@pytest.mark.parametrize("bad", [{"do": "break", "after": 0}, BUSY, BUSY | {"status": 502}, BUSY | {"status": 404}])
async def test_before_the_first_byte_another_replica_answers(
    openai: AsyncOpenAI, team: world.World, second: world.ModelServer, bad: dict[str, object]
) -> None:
    second.always = bad
    count = 0
    while not second.seen or count < 4:  # chance decides which one is asked first
        count += 1
        assert await ask(openai) == "Paris."
    assert team.load().deployments[0].errors == 0
    assert {name for *_, name in team.proxy.forwarder.retries} == {"lost" if bad["do"] == "break" else "refused"}
    ids = [
        {k.lower(): v for k, v in seen.headers.items()}["x-request-id"] for seen in (*team.server.seen, *second.seen)
    ]
    assert len(set(ids)) == count, "a request keeps its id on every attempt"


async def test_a_single_draining_replica_passes_its_503(openai: AsyncOpenAI, team: world.World) -> None:
    team.server.always = BUSY
    with pytest.raises(sdk.InternalServerError, match="draining") as caught:
        await ask(openai)
    assert caught.value.status_code == 503
    assert len(team.server.seen) == 1


async def test_after_the_first_byte_nothing_is_repeated(
    openai: AsyncOpenAI, team: world.World, second: world.ModelServer
) -> None:
    team.server.always = second.always = {"do": "break", "after": 1}
    stream = await openai.chat.completions.create(model="qa", messages=order(do="answer"), stream=True)
    assert (await anext(aiter(stream))).choices[0].delta.content == " t0"
    with pytest.raises(sdk.APIError, match=r"The model server failed.*name request"):
        await anext(aiter(stream))
    assert len(team.server.seen) + len(second.seen) == 1
    assert codes_and_failures(team) == ({"200": 1}, 1), "cut after its status was told"


async def test_a_failure_of_the_gateway_itself_is_one(
    openai: AsyncOpenAI, team: world.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team.proxy.forwarder, "send", None)  # what no test could bring about otherwise
    with pytest.raises(sdk.InternalServerError, match="The gateway failed"):
        await ask(openai)
    assert codes_and_failures(team) == ({"500": 1}, 1)


@pytest.mark.parametrize("limits", [Limits(stream_seconds=0.3, response_seconds=60.0, prefix_bytes=0)])
async def test_a_stream_leaves_a_replica_that_hangs(
    openai: AsyncOpenAI, team: world.World, second: world.ModelServer
) -> None:
    second.always = {"do": "hang"}
    while not second.seen:  # chance decides which one is asked first
        stream = await openai.chat.completions.create(model="qa", messages=order(do="answer"), stream=True)
        assert [chunk.choices[0].delta.content async for chunk in stream] == ["", " t0", " t1", " t2", None]
    assert team.proxy.forwarder.retries == {("team", "qa", "lost"): 1}
    assert team.measures.upstream_failures == {"silent": 1}
    await until(lambda: bool(second.left), "the hanging one to be told")


@pytest.mark.parametrize("limits", [Limits(stream_seconds=0.2, response_seconds=0.6)])
async def test_only_a_stream_is_given_up_early(openai: AsyncOpenAI, team: world.World) -> None:
    team.server.always = {"do": "hang"}
    with pytest.raises(sdk.InternalServerError, match=r"did not begin its answer within 0 s\..*name request") as caught:
        await openai.chat.completions.create(model="qa", messages=order(), stream=True)
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
    with pytest.raises(sdk.InternalServerError, match=r"was silent for 1 s\. Ask for fewer tokens"):
        await openai.chat.completions.create(model="qa", messages=order())
    assert [(line["status"], line["failure"]) for line in team.access_log()] == [(504, "silent")] * 2
    assert team.load().deployments[0].errors == 2


async def test_retries_do_not_multiply_an_outage(
    openai: AsyncOpenAI, team: world.World, second: world.ModelServer
) -> None:
    team.server.always = second.always = {"do": "break", "after": 0}
    asked = 60
    for _ in range(asked):
        with pytest.raises(sdk.InternalServerError):
            await ask(openai)
    seen = len(team.server.seen) + len(second.seen)
    assert asked < seen <= asked * 1.2 + RESERVE, "a fifth of the requests, and what a calm hour had saved up"


async def test_a_failing_replica_is_ejected_and_a_probe_brings_it_back(
    openai: AsyncOpenAI, team: world.World, second: world.ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    second.always = {"do": "error", "status": 500, "body": {"error": {"message": "broken"}}}
    caplog.set_level(logging.INFO)
    for _ in range(200):
        with contextlib.suppress(sdk.InternalServerError):
            await ask(openai)
        if team.proxy.forwarder.ejections:
            break
    assert len(second.seen) >= FAILURES
    assert team.proxy.forwarder.ejections == {("team", "qa", "refused"): 1}
    assert team.proxy.forwarder.ejected() == {("team", "qa"): 1}
    second.always = {}
    await until(lambda: team.proxy.forwarder.ejected() == {("team", "qa"): 0}, "its time to be over, also unasked")
    while "a model server is back" not in (said := [record.getMessage() for record in caplog.records]):
        await ask(openai)
    assert said.count("a model server is passed over for a while") == 1
    assert said.count("a model server is back") == 1


async def test_a_crash_is_502_with_an_id_that_is_in_the_logs(
    team: world.World, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps({"model": "qa", "messages": order(do="break", after=0)}).encode()
    answer = await raw(team.port, post(CHAT, body, "x-request-id: crash-1\r\nconnection: close\r\n"))
    assert answer.startswith(b"HTTP/1.1 502")
    assert b"\r\nx-request-id: crash-1\r\n" in answer
    assert b"name request crash-1" in answer
    (record,) = [each for each in caplog.records if getattr(each, "request", "") == "crash-1"]
    assert "closed the connection" in vars(record)["why"]
    assert vars(record)["replica"] == f"127.0.0.1:{team.server.port}"


@pytest.mark.parametrize("limits", [Limits(stalled_seconds=0.3)])
async def test_a_slow_client_is_cut_and_the_server_told(team: world.World) -> None:
    body = json.dumps({"model": "qa", "stream": True, "messages": order(do="fill", megabytes=256)}).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", team.port, limit=1024)
    writer.write(post(CHAT, body))
    await until(lambda: bool(team.server.left), "the server to be told that nobody reads")
    await until(lambda: not team.state.connections, "the client's connection to be cut")
    assert next(iter(team.measures.series.values())).codes == {"499": 1}
    writer.close()


async def test_a_server_killed_under_load_fails_no_new_request(team: world.World, server: world.ModelServer) -> None:
    """Thirty clients ask without a pause; one of two replicas dies in the midst, with all its connections."""
    dying = world.ModelServer()
    statuses: list[bytes] = []
    stop = asyncio.Event()

    async def client() -> None:
        body = json.dumps({"model": "qa", "messages": order(do="answer")}).encode()
        while not stop.is_set():
            answer = await raw(team.port, post(CHAT, body, "connection: close\r\n"))
            statuses.append(answer[9:12])

    async with asyncio.TaskGroup() as clients:
        async with world.listening(dying.application(), server.port, "127.0.0.2"):
            team.route(world.deployment("qa"), world.endpoint_slice("qa", ["127.0.0.1", "127.0.0.2"], server.port))
            for _ in range(30):
                clients.create_task(client())
            await until(lambda: len(dying.seen) > 50, "both replicas to serve")
        before = len(statuses)
        await until(lambda: len(statuses) > before + 200, "requests after the death")
        stop.set()
    assert set(statuses) == {b"200"}
    assert team.proxy.forwarder.ejections[("team", "qa", "connect")] >= 1
