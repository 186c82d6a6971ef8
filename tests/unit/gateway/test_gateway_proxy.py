"""The gateway between a real OpenAI client and a model server that behaves well or badly."""

import asyncio
import json
import re

import gateway_world as world
import openai as sdk
import pytest
from gateway_world import order, post, raw, until
from openai import AsyncOpenAI

from tuneloop_gateway.config import Limits

CHAT = "/team/v1/chat/completions"


async def test_models_are_listed(openai: AsyncOpenAI) -> None:
    assert [model.id for model in (await openai.models.list()).data] == ["qa", "support-bot"]


async def test_chat_and_the_engine_s_names(openai: AsyncOpenAI, team: world.World) -> None:
    base = await openai.chat.completions.create(model="qa", messages=[{"role": "user", "content": "hi"}])
    adapter = await openai.chat.completions.create(model="support-bot", messages=[{"role": "user", "content": "hi"}])
    plain = await openai.completions.create(model="qa", prompt="hi")
    assert base.choices[0].message.content == "Paris."
    assert plain.usage is not None
    assert adapter.model == f"support-bot@{world.DIGEST12}"
    assert [seen.body["model"] for seen in team.server.seen] == ["qa", f"support-bot@{world.DIGEST12}", "qa"]
    assert [seen.path for seen in team.server.seen] == ["/v1/chat/completions"] * 2 + ["/v1/completions"]


async def test_only_our_own_head_reaches_the_server(team: world.World) -> None:
    body = b'{"model":"qa","messages":[{"role":"user","content":"hi"}]}'
    answer = await raw(
        team.port, post(CHAT, body, "x-request-id: abc-1\r\ncookie: c\r\nx-evil: 1\r\nconnection: close\r\n")
    )
    headers = {name.lower(): value for name, value in team.server.seen[0].headers.items()}
    assert headers.keys() == {"host", "authorization", "content-type", "accept", "x-request-id", "content-length"}
    assert headers["authorization"] == "Bearer token-of-team"
    assert headers["x-request-id"].startswith("abc-1-tl"), "the tag of the version that answers"
    assert b"\r\nx-request-id: abc-1\r\n" in answer


async def test_streamed_chat_hides_the_usage_chunk(openai: AsyncOpenAI, team: world.World) -> None:
    stream = await openai.chat.completions.create(model="qa", messages=order(do="stream", tokens=4), stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == " t0 t1 t2 t3"
    assert all(chunk.usage is None for chunk in chunks)
    assert team.server.seen[0].body["stream_options"] == {"include_usage": True}
    await until(lambda: team.load().deployments[0].completion_tokens == 4, "tokens counted from usage")
    load = team.load().deployments[0]
    assert (load.requests, load.ongoing, load.prompt_tokens, load.errors) == (1, 0, 7, 0)
    assert load.ttft is not None
    assert load.itl is not None
    assert load.tpot is not None
    assert (load.ttft.counts[-1], load.itl.counts[-1], load.tpot.counts[-1]) == (1, 3, 1)


async def test_streamed_chat_with_usage_asked_for(openai: AsyncOpenAI) -> None:
    stream = await openai.chat.completions.create(
        model="qa", messages=order(do="stream", tokens=2), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


async def test_chunks_come_as_they_are_made(openai: AsyncOpenAI, team: world.World) -> None:
    """The server waits for the gate after its first token, so a gateway that held back would never get there."""
    stream = await openai.chat.completions.create(
        model="qa", messages=order(do="stream", tokens=2, wait=True), stream=True
    )
    first = [await anext(aiter(stream)), await anext(aiter(stream))]
    assert first[1].choices[0].delta.content == " t0"
    team.server.gate.set()
    assert [chunk.choices[0].delta.content async for chunk in stream] == [" t1", None]


async def test_bytes_pass_unaltered(team: world.World) -> None:
    pieces = ['data: {"choices":[{"delta":{"content":"a"', "}}]}\n", "\n: comment\n\nda", "ta: [DO", "NE]\n\nrest"]
    body = json.dumps({"model": "qa", "stream": True, "messages": order(do="bytes", pieces=pieces)}).encode()
    answer = await raw(team.port, post(CHAT, body, "connection: close\r\n"))
    head, _, framed = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert b"".join(re.findall(rb"[0-9a-f]+\r\n((?:(?!\r\n).)*)\r\n", framed, re.DOTALL)) == "".join(pieces).encode()


async def test_a_client_that_leaves_stops_the_server(openai: AsyncOpenAI, team: world.World) -> None:
    stream = await openai.chat.completions.create(
        model="qa", messages=order(do="stream", tokens=9, wait=True), stream=True
    )
    await anext(aiter(stream))
    await stream.close()
    await until(lambda: team.server.left == ["/v1/chat/completions"], "the server's handler to be cancelled")
    await until(lambda: team.load().deployments[0].ongoing == 0, "the request to be over")
    assert next(iter(team.measures.series.values())).codes == {"499": 1}


async def test_a_client_that_leaves_before_the_answer_stops_the_server(team: world.World) -> None:
    body = json.dumps({"model": "qa", "messages": order(do="hang")}).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", team.port)
    writer.write(post(CHAT, body))
    await until(lambda: len(team.server.seen) == 1, "the request to reach the server")
    writer.close()
    await until(lambda: bool(team.server.left), "the server's handler to be cancelled")


@pytest.mark.parametrize(
    ("status", "body", "expected", "code", "words"),
    [
        (400, {"error": {"message": "too long", "type": "BadRequestError", "code": "400"}}, 400, "400", "too long"),
        (400, {"object": "error", "message": "old shape"}, 400, "upstream_error", "old shape"),
        (422, {"detail": "bad"}, 422, "upstream_error", "bad"),
        (429, {"error": {"message": "busy"}}, 429, None, "busy"),
        (500, "Internal Server Error", 500, "upstream_error", "The model server answered 500."),
        (401, {"error": "Unauthorized"}, 502, "upstream_failed", "not your key"),
        (403, "no", 502, "upstream_failed", "not your key"),
        (404, {"error": {"message": "The model x does not exist"}}, 503, "model_not_ready", "may still be loading"),
    ],
)
async def test_upstream_errors(
    openai: AsyncOpenAI, status: int, body: object, expected: int, code: object, words: str
) -> None:
    with pytest.raises(sdk.APIStatusError) as caught:
        await openai.chat.completions.create(
            model="qa", messages=order(do="error", status=status, body=body), stream=True
        )
    assert caught.value.status_code == expected
    assert caught.value.code == code
    assert words in caught.value.message


async def test_retry_after_of_the_server_is_passed(openai: AsyncOpenAI) -> None:
    with pytest.raises(sdk.RateLimitError) as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="error", status=429, body={}, retry="7"))
    assert caught.value.response.headers["retry-after"] == "7"


async def test_a_stream_that_breaks_is_told(openai: AsyncOpenAI, team: world.World) -> None:
    stream = await openai.chat.completions.create(model="qa", messages=order(do="break", after=2), stream=True)
    assert [(await anext(aiter(stream))).choices[0].delta.content for _ in range(2)] == [" t0", " t1"]
    with pytest.raises(sdk.APIError, match="The model server failed"):
        await anext(aiter(stream))
    await until(lambda: team.load().deployments[0].errors == 1, "the failure to be counted")


async def test_a_broken_stream_has_no_proper_end(team: world.World) -> None:
    body = json.dumps({"model": "qa", "stream": True, "messages": order(do="break", after=1)}).encode()
    assert not (await raw(team.port, post(CHAT, body))).endswith(b"0\r\n\r\n")


async def test_a_server_that_dies_before_its_answer_is_502(openai: AsyncOpenAI, team: world.World) -> None:
    with pytest.raises(sdk.InternalServerError) as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="break", after=0))
    assert caught.value.status_code == 502
    assert len(team.server.seen) == 1, "work that may have begun is not repeated"


async def test_a_large_answer_passes(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.with_raw_response.create(model="qa", messages=order(do="large", megabytes=9))
    assert len(answer.content) == (9 << 20) + 8


async def test_connections_to_a_server_are_kept(openai: AsyncOpenAI, team: world.World) -> None:
    for _ in range(3):
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    assert len({seen.port for seen in team.server.seen}) == 1


async def test_a_dead_kept_connection_costs_nothing(team: world.World) -> None:
    """A server that was restarted on the same address: the kept connection is dead, a new one serves."""
    server = world.ModelServer()
    async with world.listening(server.application()) as port:
        team.route(world.deployment("qa"), world.endpoint_slice("qa", ["127.0.0.1"], port))
        await _ask(team)
    async with world.listening(server.application(), port):
        await _ask(team)
    assert len(server.seen) == 2
    assert team.load().deployments[0].errors == 0


async def test_another_endpoint_takes_over(team: world.World) -> None:
    """Loopback holds many addresses; only one of these has a server, so half of the picks meet a refusal."""
    slices = world.endpoint_slice("qa", ["127.0.0.2", "127.0.0.1"], team.server.port)
    team.route(world.deployment("qa"), slices)
    for _ in range(8):
        await _ask(team)
    assert team.measures.upstream_failures.get("connect", 0) <= 1, "an endpoint that refused is passed over"


async def test_no_endpoint_answers(openai: AsyncOpenAI, team: world.World) -> None:
    team.route(world.deployment("qa"), world.endpoint_slice("qa", ["127.0.0.2"], team.server.port))
    with pytest.raises(sdk.InternalServerError, match="No model server could be reached") as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    assert caught.value.status_code == 502


async def test_an_adapter_that_is_not_loaded_is_503_in_words(openai: AsyncOpenAI, team: world.World) -> None:
    waiting = world.deployment("qa", adapters=["bot"])
    waiting["status"]["adapters"] = [{"name": "bot", "state": "Waiting", "message": "Waiting for FineTuneJob bot."}]
    team.route(waiting, world.endpoint_slice("qa", ["127.0.0.1"], team.server.port))
    with pytest.raises(sdk.InternalServerError, match="Waiting for FineTuneJob bot") as caught:
        await openai.chat.completions.create(model="bot", messages=order(do="answer"))
    assert caught.value.status_code == 503
    assert [model.id for model in (await openai.models.list()).data] == ["qa"]


async def test_a_stream_outlives_its_route(openai: AsyncOpenAI, team: world.World) -> None:
    stream = await openai.chat.completions.create(
        model="qa", messages=order(do="stream", tokens=2, wait=True), stream=True
    )
    await anext(aiter(stream))
    team.route()
    team.server.gate.set()
    assert len([chunk async for chunk in stream]) == 3


async def test_a_slow_reader_slows_the_server(team: world.World) -> None:
    """What a client does not read must stay in the server: 64 MiB asked for, nothing read, little held here."""
    body = json.dumps({"model": "qa", "stream": True, "messages": order(do="fill", megabytes=64)}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", team.port, limit=1024)
    writer.write(post(CHAT, body, "connection: close\r\n"))
    await until(lambda: any(each._paused for each in team.proxy.forwarder._exchanges), "the server's side to be paused")
    held = sum(each._transport.get_write_buffer_size() for each in team.state.connections)
    assert held < 2 << 20
    size = 0
    while piece := await reader.read(1 << 20):
        size += len(piece)
    assert size > 64 << 20
    writer.close()


@pytest.mark.parametrize("limits", [Limits(response_seconds=0.3, silence_seconds=0.3)])
async def test_a_server_that_never_answers_is_504(openai: AsyncOpenAI, team: world.World) -> None:
    with pytest.raises(sdk.InternalServerError, match="silent") as caught:
        await openai.chat.completions.create(model="qa", messages=order(do="hang"))
    assert caught.value.status_code == 504
    await until(lambda: bool(team.server.left), "the server to be told")


@pytest.mark.parametrize("limits", [Limits(response_seconds=0.3, silence_seconds=0.3)])
async def test_a_server_that_falls_silent_breaks_the_stream(openai: AsyncOpenAI) -> None:
    stream = await openai.chat.completions.create(model="qa", messages=order(do="silence"), stream=True)
    with pytest.raises(sdk.APIError, match="silent"):
        async for _ in stream:
            pass


async def test_many_streams_at_once(team: world.World) -> None:
    body = json.dumps({"model": "qa", "stream": True, "messages": order(do="stream", tokens=5, interval=0.02)}).encode()
    answers = await asyncio.gather(*(raw(team.port, post(CHAT, body, "connection: close\r\n")) for _ in range(200)))
    assert all(answer.count(b"data: ") == 8 and answer.endswith(b"0\r\n\r\n") for answer in answers)
    assert team.load().deployments[0].requests == 200


async def _ask(team: world.World) -> None:
    body = b'{"model":"qa","messages":[{"role":"user","content":"hi"}]}'
    answer = await raw(team.port, post(CHAT, body, "connection: close\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 OK"), answer
