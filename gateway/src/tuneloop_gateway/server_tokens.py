"""The gateway's own tokens towards servers, one a namespace, renewed behind the requests' backs.

A request costs a look into a dict. While the API server is away the tokens that there are serve on until they run out.
Never logs a token and never hands it to anybody but a server pod of its namespace.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Set

import aiohttp

from tuneloop_core.servertokens import ServerToken, read_token, token_path, token_request
from tuneloop_gateway.cluster import Access

log = logging.getLogger(__name__)

Ask = Callable[[str], Awaitable[ServerToken]]

AT_ONCE = 8  # questions to the API server
RETRY_SECONDS = 5.0
FIRST_SECONDS = 2.0  # how long a request waits for the very first token of a namespace
ASK_TIMEOUT = aiohttp.ClientTimeout(total=10)


class ServerTokens:
    """Tokens for the namespaces that are kept; each is looked after by a task of its own."""

    def __init__(self, ask: Ask, retry_seconds: float = RETRY_SECONDS) -> None:
        self._ask, self._retry = ask, retry_seconds
        self._values: dict[str, bytes] = {}
        self._tried: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failing: set[str] = set()
        self._gate = asyncio.Semaphore(AT_ONCE)

    def keep(self, namespaces: Set[str]) -> None:
        """Look after the tokens of these namespaces, forget the others."""
        for gone in self._tasks.keys() - namespaces:
            self._tasks.pop(gone).cancel()
            self._values.pop(gone, None)
            self._tried.pop(gone)
            self._failing.discard(gone)
        for new in namespaces - self._tasks.keys():
            self._tried[new] = asyncio.Event()
            self._tasks[new] = asyncio.create_task(self._look_after(new))

    def close(self) -> None:
        """End all tasks."""
        self.keep(frozenset())

    async def value(self, namespace: str) -> bytes:
        """The token; waits only where none was asked for yet. Empty where none can be had: the server will refuse."""
        tried = self._tried.get(namespace)
        if namespace not in self._values and tried is not None and not tried.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(tried.wait(), FIRST_SECONDS)
        return self._values.get(namespace, b"")

    async def _look_after(self, namespace: str) -> None:
        while True:
            seconds = await self._renew(namespace)
            await asyncio.sleep(seconds)

    async def _renew(self, namespace: str) -> float:
        """Ask once; how long to wait before the next time. What fails leaves the old token."""
        try:
            async with self._gate:
                token = await self._ask(namespace)
        except Exception as error:
            self._tell(namespace, error)
            return self._retry
        finally:
            self._tried[namespace].set()
        self._values[namespace] = token.value.encode()
        self._failing.discard(namespace)
        return token.refresh_after * random.uniform(0.9, 1.0)  # noqa: S311 - jitter

    def _tell(self, namespace: str, error: Exception) -> None:
        """Once; the old token is used on, since it may well be valid still."""
        if namespace not in self._failing:
            about = {"namespace": namespace, "error": f"{type(error).__name__}: {error}"}
            log.warning(
                "no new token for model servers; when the old one runs out they refuse this gateway", extra=about
            )
        self._failing.add(namespace)


async def ask_token(
    session: aiohttp.ClientSession, access: Access, account_namespace: str, account: str, namespace: str
) -> ServerToken:
    """A token of a service account towards the servers of ``namespace``.

    Raises:
        aiohttp.ClientError, OSError: the API server did not answer, or refused.
        KeyError, ValueError: it answered something else.
    """
    url, body = access.base_url + token_path(account_namespace, account), token_request(namespace)
    async with session.post(
        url, json=body, headers=access.headers(), ssl=access.tls or True, timeout=ASK_TIMEOUT
    ) as reply:
        reply.raise_for_status()
        return read_token(await reply.json())
