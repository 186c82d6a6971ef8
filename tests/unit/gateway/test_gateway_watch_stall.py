"""A watch whose connection goes silent: it is noticed, begun again where it was, and what is known stays known."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from gateway_world import until

from tuneloop_gateway.cluster import KEEPALIVE, Access, connector
from tuneloop_gateway.watch import Pace, Watcher

PATH = "/apis/tuneloop.dev/v1alpha1/modeldeployments"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def item(name: str, version: int) -> dict[str, object]:
    return {"metadata": {"namespace": "team", "name": name, "resourceVersion": str(version)}}


class StallingApi:
    """An API server of one list; each watch says what it has since its version, then nothing, and stays open."""

    def __init__(self, *, mute: int = 0) -> None:
        self.events: list[tuple[int, str]] = []  # (version, name)
        self.watches: list[dict[str, str]] = []  # their queries
        self.lists = 0
        self._mute = mute  # so many watches get no head even

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                target = urlsplit(request.split(b" ", 2)[1].decode())
                await self._answer({key: value[0] for key, value in parse_qs(target.query).items()}, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if query.get("watch") != "true":
            self.lists += 1
            body = json.dumps({"metadata": {"resourceVersion": "10"}, "items": [item("first", 9)]}).encode()
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            return await writer.drain()
        self.watches.append(query)
        if len(self.watches) <= self._mute:
            return None
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for version, name in self.events:
            if version > int(query["resourceVersion"]):
                line = json.dumps({"type": "ADDED", "object": item(name, version)}).encode() + b"\n"
                writer.write(b"%x\r\n%b\r\n" % (len(line), line))
        return await writer.drain()


@asynccontextmanager
async def watching(api: StallingApi) -> AsyncIterator[Watcher[str]]:
    pace = Pace(silence=0.2, first_backoff=0.01, last_backoff=0.02)
    found: Watcher[str] = Watcher(PATH, lambda raw: str(raw["metadata"]["name"]), lambda: None, pace=pace)
    async with api.listening() as url, aiohttp.ClientSession(connector=connector()) as session:
        task = asyncio.create_task(found.run(session, Access(url)))
        try:
            await asyncio.wait_for(found.synced.wait(), 60)
            yield found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def names(watcher: Watcher[str]) -> list[str]:
    return sorted(name for _, name in watcher.objects)


@pytest.mark.parametrize("mute", [0, 1], ids=["within the stream", "before its head"])
async def test_a_watch_that_goes_silent_is_begun_again_where_it_was(mute: int) -> None:
    api = StallingApi(mute=mute)
    api.events = [(11, "second")]
    async with watching(api) as watcher:
        await until(lambda: names(watcher) == ["first", "second"], "the event before the silence")
        before = len(api.watches)
        api.events.append((12, "third"))  # while the connection that would tell it is silent
        await until(lambda: names(watcher) == ["first", "second", "third"], "what was missed")
        assert watcher.relists == api.lists == 1, "nothing is listed anew"
        versions = [query["resourceVersion"] for query in api.watches]
        assert (versions[0], versions[before]) == ("10", "11")
        assert all(query["allowWatchBookmarks"] == "true" for query in api.watches), "so that calm is not silence"
        assert all(int(query["timeoutSeconds"]) <= 1.1 * Pace().watch for query in api.watches)


async def test_what_is_known_stays_known_through_any_number_of_silences() -> None:
    api, seen = StallingApi(), set[tuple[str, ...]]()
    async with watching(api) as watcher:

        def looked() -> bool:
            seen.add(tuple(names(watcher)))
            return len(api.watches) >= 5

        await until(looked, "five watches")
    assert seen == {("first",)}


def test_silence_is_longer_than_the_time_between_bookmarks() -> None:
    """The API server sends one a minute (cacher.go, defaultBookmarkFrequency)."""
    assert 60 < Pace().silence <= 90


async def test_a_connection_whose_other_side_is_gone_is_given_up_by_the_kernel() -> None:
    opened: list[socket.socket] = []
    made = connector()
    inner: Callable[..., socket.socket] = made._socket_factory  # type: ignore[assignment]
    made._socket_factory = lambda info: opened.append(inner(info)) or opened[-1]  # type: ignore[func-returns-value]
    async with StallingApi().listening() as url, aiohttp.ClientSession(connector=made) as session:
        async with session.get(url + PATH) as reply:
            assert reply.status == 200
        (used,) = opened
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert {option: used.getsockopt(socket.IPPROTO_TCP, option) for option in KEEPALIVE} == KEEPALIVE
        idle, between, count = (
            KEEPALIVE[key] for key in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + between * count <= 30
