"""HTTP towards clients: every limit, every malformed request, and what the connection does afterwards."""

import asyncio
import contextlib
import json
import resource

import gateway_world as world
import pytest
from gateway_world import KEY, order, post, raw, until

from tuneloop_gateway.config import Limits

CHAT = "/team/v1/chat/completions"
HI = b'{"model":"qa","messages":[{"role":"user","content":"hi"}]}'


def parsed(answer: bytes) -> tuple[int, dict[str, str], dict[str, object]]:
    """Status, headers, JSON body of the first answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(body[: int(headers["content-length"])])


def get(path: str, key: str = KEY) -> bytes:
    """A GET as bytes."""
    return f"GET {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("data", "status", "code", "words"),
    [
        (post(CHAT, b"{"), 400, "invalid_json", "not valid JSON"),
        (post(CHAT, b""), 400, "invalid_json", "not valid JSON"),
        (post(CHAT, b"[]"), 400, "invalid_json", "found an array"),
        (post(CHAT, b"\xff"), 400, "invalid_json", "not valid JSON"),
        (post(CHAT, b'{"a":' * 2000 + b"1" + b"}" * 2000), 400, "invalid_json", "JSON"),
        (post(CHAT, b'{"model":"qa","x":' + b'{"a":' * 500 + b"1" + b"}" * 501), 400, "invalid_json", "too deep"),
        (post(CHAT, b"{}"), 400, "missing_model", "qa, support-bot"),
        (post(CHAT, b'{"model":7}'), 400, "missing_model", "not a non-empty string"),
        (post(CHAT, b'{"model":"qa","stream":"yes"}'), 400, "invalid_value", "'stream' must be true or false"),
        (post(CHAT, b'{"model":"qa","stream_options":1}'), 400, "invalid_value", "stream_options"),
        (
            post(CHAT, b'{"model":"qa","stream_options":{"include_usage":1}}'),
            400,
            "invalid_value",
            "'stream_options.include_usage' must be true or false, found a number",
        ),
        (post(CHAT, HI, key=""), 401, "missing_api_key", "Authorization: Bearer"),
        (post(CHAT, HI, key="wrong"), 401, "invalid_api_key", "opens no model"),
        (post("/elsewhere/v1/chat/completions", HI), 401, "invalid_api_key", "namespace"),
        (post(CHAT, b'{"model":"gpt-4o"}'), 404, "model_not_found", "Models you may use here: qa, support-bot."),
        (post("/team/v1/audio/speech", HI), 404, "not_found", "/NAMESPACE/v1/chat/completions"),
        (post("/v1/chat/completions", HI), 404, "not_found", "/NAMESPACE/v1/models"),
        (get(CHAT), 405, "method_not_allowed", "POST only"),
        (post("/team/v1/models", b""), 405, "method_not_allowed", "GET only"),
        (post(CHAT + "?" + "q" * 9000, HI), 414, "url_too_long", "8192"),
        (post(CHAT, HI, f"x-a: {'h' * 40000}\r\n"), 431, "headers_too_large", "32768"),
        (post(CHAT, b"x" * 65537), 413, "body_too_large", "65536"),
        (b"garbage\r\n\r\n", 400, "bad_request", "not valid HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request", "not valid HTTP"),
        (
            b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            404,
            "not_found",
            "No such path",
        ),
        (
            b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
            "bad_request",
            "not valid",
        ),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400, "bad_request", "not valid"),
    ],
)
async def test_refusals(team: world.World, data: bytes, status: int, code: str, words: str) -> None:
    data = data.replace(b"host: h\r\n", b"host: h\r\nconnection: close\r\n", 1) if b"connection:" not in data else data
    found, headers, body = parsed(await raw(team.port, data))
    error = body["error"]
    assert isinstance(error, dict)
    assert (found, error["code"]) == (status, code)
    assert words in error["message"]
    assert headers["content-type"] == "application/json"
    assert not team.server.seen
    assert team.state.buffered == 0


async def test_a_refused_body_is_never_read(team: world.World) -> None:
    """413 by Content-Length comes before the client has sent a byte of 4 GiB."""
    reader, writer = await asyncio.open_connection("127.0.0.1", team.port)
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ncontent-length: {4 << 30}\r\n\r\n".encode()
    )
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), 20)).split()[1] == b"413"
    writer.close()


async def test_a_chunked_body_is_counted(team: world.World) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    )
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    status, _, _ = parsed(await raw(team.port, head + chunk * 5 + b"0\r\n\r\n"))
    assert status == 413
    assert team.state.buffered == 0


async def test_memory_does_not_grow_under_large_bodies(team: world.World) -> None:
    """Two hundred bodies of 1 MiB against a limit of 64 KiB: none is held."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10):
        answers = await asyncio.gather(*(raw(team.port, head + chunk * 16) for _ in range(20)))
        assert all(answer.startswith(b"HTTP/1.1 413") for answer in answers)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert team.state.buffered == 0
    assert grown < 100 * 1024, f"peak memory grew by {grown} KiB (the clients of this test are in it)"


@pytest.mark.parametrize("limits", [Limits(buffered_bytes=200_000)])
async def test_all_bodies_together_are_bounded(team: world.World) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ncontent-length: 90000\r\n\r\n".encode()
    held = [await asyncio.open_connection("127.0.0.1", team.port) for _ in range(3)]
    for _, writer in held:
        writer.write(head + b"x" * 80000)
        await asyncio.sleep(0.05)
    status = (await asyncio.wait_for(held[2][0].readuntil(b"\r\n"), 20)).split()[1]
    assert status == b"503"
    for _, writer in held:
        writer.close()
    await until(lambda: team.state.buffered == 0, "memory of clients that left to be given back")


async def test_pipelined_requests_are_answered_in_order(team: world.World) -> None:
    slow = json.dumps({"model": "qa", "messages": order(do="stream", tokens=2, interval=0.05), "stream": True}).encode()
    answer = await raw(team.port, post(CHAT, slow) + post(CHAT, HI) + post(CHAT, HI, "connection: close\r\n"))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.index(b"[DONE]") < answer.index(b"Paris.")


async def test_a_flood_of_pipelined_requests_is_cut(team: world.World) -> None:
    hang = json.dumps({"model": "qa", "messages": order(do="hang")}).encode()
    with contextlib.suppress(ConnectionResetError):
        assert await raw(team.port, post(CHAT, hang) * 40) == b""
    assert not team.state.connections


async def test_a_connection_is_kept_after_an_error_in_the_body(team: world.World) -> None:
    answer = await raw(team.port, post(CHAT, b"{") + post(CHAT, HI, "connection: close\r\n"))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"HTTP/1.1 200 OK" in answer


async def test_expect_100_continue(team: world.World) -> None:
    first = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\n"
    head = f"{first}connection: close\r\nexpect: 100-continue\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", team.port)
    writer.write(f"{head}content-length: {len(HI)}\r\n\r\n".encode())
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(HI)
    assert (await asyncio.wait_for(reader.read(-1), 20)).startswith(b"HTTP/1.1 200 OK")
    writer.close()


async def test_http_1_0_gets_an_unframed_stream(team: world.World) -> None:
    body = json.dumps({"model": "qa", "stream": True, "messages": order(do="stream", tokens=1)}).encode()
    answer = await raw(team.port, post(CHAT, body).replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, stream = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert stream.startswith(b"data: ")
    assert stream.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("limits", [Limits(head_seconds=0.3)])
async def test_a_slow_head_is_408(team: world.World) -> None:
    status, _, _ = parsed(await raw(team.port, b"POST /team/v1/chat"))
    assert status == 408


@pytest.mark.parametrize("limits", [Limits(body_seconds=0.3)])
async def test_a_slow_body_is_408(team: world.World) -> None:
    status, _, _ = parsed(await raw(team.port, post(CHAT, HI)[:-5]))
    assert status == 408
    assert team.state.buffered == 0


@pytest.mark.parametrize("limits", [Limits(idle_seconds=0.3)])
async def test_an_idle_connection_is_closed(team: world.World) -> None:
    assert await raw(team.port, b"") == b""
    assert (await raw(team.port, post(CHAT, HI))).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("limits", [Limits(stalled_seconds=0.3)])
async def test_a_client_that_does_not_read_is_dropped(team: world.World) -> None:
    body = json.dumps({"model": "qa", "stream": True, "messages": order(do="fill", megabytes=64)}).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", team.port, limit=1024)
    writer.write(post(CHAT, body))
    await until(lambda: bool(team.server.seen), "the request to reach the server")
    await until(lambda: not team.state.connections, "the stalled client to be dropped")
    await until(lambda: bool(team.server.left), "the server to be told")
    writer.close()


@pytest.mark.parametrize("limits", [Limits(connections=2)])
async def test_too_many_connections_are_503(team: world.World) -> None:
    held = [await asyncio.open_connection("127.0.0.1", team.port) for _ in range(2)]
    await until(lambda: len(team.state.connections) == 2, "both connections to be known")
    assert (await raw(team.port, b"")).startswith(b"HTTP/1.1 503")
    for _, writer in held:
        writer.close()


async def test_draining_finishes_streams_and_closes_the_rest(team: world.World) -> None:
    body = json.dumps({"model": "qa", "stream": True, "messages": order(do="stream", tokens=2, wait=True)}).encode()
    _, idle = await asyncio.open_connection("127.0.0.1", team.port)
    stream = asyncio.create_task(raw(team.port, post(CHAT, body)))
    await until(lambda: len(team.server.seen) == 1 and len(team.state.connections) == 2, "both connections")
    team.state.drain()
    await until(lambda: len(team.state.connections) == 1, "the idle connection to be closed")
    team.server.gate.set()
    assert b"[DONE]" in await stream
    idle.close()


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2:3_4", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ('"x"', False)]
)
async def test_request_ids(team: world.World, given: str, kept: bool) -> None:
    _, headers, _ = parsed(await raw(team.port, post(CHAT, HI, f"x-request-id: {given}\r\nconnection: close\r\n")))
    assert (headers["x-request-id"] == given) == kept
    assert len(headers["x-request-id"]) == (len(given) if kept else 32)


async def test_health_and_readiness(team: world.World) -> None:
    assert (await raw(team.port, get("/healthz"))).startswith(b"HTTP/1.1 200")
    assert (await raw(team.port, get("/readyz"))).startswith(b"HTTP/1.1 200")
    team.proxy.draining = True
    assert (await raw(team.port, get("/readyz"))).startswith(b"HTTP/1.1 503")
    team.proxy.draining, team.proxy.table = False, None
    assert (await raw(team.port, get("/readyz"))).startswith(b"HTTP/1.1 503")
    assert (await raw(team.port, post(CHAT, HI))).startswith(b"HTTP/1.1 503")
    assert (await raw(team.port, get("/healthz"))).startswith(b"HTTP/1.1 200")
