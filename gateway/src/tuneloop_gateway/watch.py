"""A list and then a watch of one kind, kept going for ever: what the gateway knows of the cluster.

Small on purpose: raw JSON, one object a kind, parsed at once into what routing needs and dropped. While the API server
is away the last objects stay, so the gateway serves on. Never writes to the cluster.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import aiohttp
import orjson

from tuneloop_gateway.cluster import Access

log = logging.getLogger(__name__)

PAGE: Final = 500
LINE_LIMIT: Final = 16 * 1024 * 1024  # bytes of one event; etcd holds objects of 1.5 MB at most


class GoneError(Exception):
    """410: the resourceVersion is too old, list again."""


@dataclass(frozen=True)
class Pace:
    """Seconds. The API server sends a bookmark once a minute, so silence beyond that is a dead connection."""

    watch: float = 290.0
    silence: float = 75.0
    refused: float = 60.0  # of 403 and nothing else: longer than a role takes to be known everywhere
    first_backoff: float = 0.5
    last_backoff: float = 30.0


T = TypeVar("T")
Key = tuple[str, str]


class Watcher(Generic[T]):
    """One kind in one namespace (or all), as parsed objects by (namespace, name)."""

    def __init__(
        self,
        path: str,
        parse: Callable[[dict[str, Any]], T],
        changed: Callable[[], None],
        selector: str = "",
        pace: Pace | None = None,
    ) -> None:
        self.path = path
        self.objects: dict[Key, T] = {}
        self.synced = asyncio.Event()
        self.heard = time.monotonic()  # when the API server was last heard of, seconds
        self.relists = 0
        self.forbidden = False  # for so long that its namespace, or the role in it, must be gone; until it is answered
        self._parse = parse
        self._changed = changed
        self._selector = {"labelSelector": selector} if selector else {}
        self._pace = pace or Pace()
        self._version = ""
        self._refused_since = 0.0  # seconds; 0 while it is not

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for: it was listed once, or is forbidden."""
        return self.synced.is_set() or self.forbidden

    async def run(self, session: aiohttp.ClientSession, access: Access) -> None:
        """List and watch until cancelled."""
        backoff = self._pace.first_backoff
        while True:
            try:
                started = time.monotonic()
                if not self._version:
                    await self._list(session, access)
                await self._watch(session, access)
                backoff = self._pace.first_backoff
                if time.monotonic() - started < 1.0:
                    await asyncio.sleep(self._pace.first_backoff)  # a server that ends watches at once
            except GoneError:
                log.info("the watch fell behind; listing again", extra={"path": self.path})
                self._version = ""
            except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
                if time.monotonic() - started > self._pace.last_backoff:
                    backoff = self._pace.first_backoff
                log.warning("the API server does not answer; serving with what is known", extra=self._about(error))
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                backoff = min(backoff * 2, self._pace.last_backoff)

    def _about(self, error: Exception) -> dict[str, str]:
        return {"path": self.path, "error": f"{type(error).__name__}: {error}"}

    # ---- list ----

    async def _list(self, session: aiohttp.ClientSession, access: Access) -> None:
        found: dict[Key, T] = {}
        version, token = "", ""
        while True:
            query = self._selector | {"limit": str(PAGE)} | ({"continue": token} if token else {})
            page = await self._get(session, access, query)
            for raw in page.get("items") or ():
                self._store(found, raw)
            version, token = page["metadata"]["resourceVersion"], page["metadata"].get("continue", "")
            if not token:
                break
        self.objects, self._version = found, version
        self.relists += 1
        self.synced.set()
        self._changed()

    async def _get(self, session: aiohttp.ClientSession, access: Access, query: dict[str, str]) -> dict[str, Any]:
        url, timeout = access.base_url + self.path, aiohttp.ClientTimeout(total=60)
        async with session.get(
            url, params=query, headers=access.headers(), ssl=access.tls or True, timeout=timeout
        ) as reply:
            self._check(reply.status)
            self.heard = time.monotonic()
            return dict(orjson.loads(await reply.read()))

    # ---- watch ----

    async def _watch(self, session: aiohttp.ClientSession, access: Access) -> None:
        seconds = int(self._pace.watch * random.uniform(0.9, 1.1))  # noqa: S311 - jitter
        query = self._selector | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(max(1, seconds)),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self._pace.silence)
        url = access.base_url + self.path
        async with session.get(
            url, params=query, headers=access.headers(), ssl=access.tls or True, timeout=timeout
        ) as reply:
            self._check(reply.status)
            async for line in _lines(reply):
                self.heard = time.monotonic()
                self._apply(orjson.loads(line))

    def _check(self, status: int) -> None:
        if status == 410:
            raise GoneError
        self._note_refusal(status)
        if status != 200:
            raise ValueError(f"status {status}")

    def _note_refusal(self, status: int) -> None:
        """A refusal ends by an answer only: a server that is away in between says nothing of the namespace."""
        if status == 200:
            self._refused_since, self.forbidden = 0.0, False
        if status != 403:
            return
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        before, self.forbidden = self.forbidden, now - self._refused_since >= self._pace.refused
        if self.forbidden and not before:
            log.warning(
                "the API server forbids this: its namespace or the role in it is gone", extra={"path": self.path}
            )
            self._changed()

    def _apply(self, event: dict[str, Any]) -> None:
        kind, raw = event["type"], event["object"]
        if kind == "ERROR":
            if raw.get("code") == 410:
                raise GoneError
            raise ValueError(f"watch error {raw.get('code')}: {raw.get('reason')}")
        self._version = raw["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return
        if kind == "DELETED":
            self.objects.pop(_key(raw), None)
        else:
            self._store(self.objects, raw)
        self._changed()

    def _store(self, objects: dict[Key, T], raw: dict[str, Any]) -> None:
        """An object that cannot be read keeps its last good form: a bad edit must not take a model down."""
        key = _key(raw)
        try:
            objects[key] = self._parse(raw)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            if key in self.objects:
                objects[key] = self.objects[key]
            extra = {"object": "/".join(key), "path": self.path, "error": type(error).__name__}
            log.warning("an object makes no sense to the gateway; its last form is kept", extra=extra)


def _key(raw: dict[str, Any]) -> Key:
    metadata = raw["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


async def _lines(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of a watch; aiohttp's own reader gives up at 128 KiB a line."""
    held = b""
    async for piece in reply.content.iter_any():
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
            if line:
                yield line
        if len(held) > LINE_LIMIT:
            raise ValueError("an event of the watch is too long")
