"""HTTP to our own pods: a trainer's progress, a server's status and poke, a gateway's load. Never decides anything.

Answers are parsed by the models of the contract, so that a pod in a user's namespace cannot feed us anything else; a
pod that does not answer, or answers nonsense, is simply unknown for now.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from tuneloop_core.constants import GATEWAY_INTERNAL_PORT, PROGRESS_PORT, SERVER_PORT
from tuneloop_core.serving import AdapterList, GatewayLoad, ServerStatus
from tuneloop_core.stages import Progress
from tuneloop_operator import metrics

logger = logging.getLogger(__name__)

TIMEOUT = aiohttp.ClientTimeout(total=5.0, sock_connect=2.0)
STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=2.0, sock_read=30.0)  # a sign of life comes every 10 s
BODY_LIMIT = 1 << 20  # bytes; a gateway's load of some thousand deployments is the largest

M = TypeVar("M", bound=BaseModel)


class PodClient:
    """One session for all pods; redirects are never followed. ``token`` gives the one for servers of a namespace."""

    def __init__(self, token: Callable[[str], Awaitable[str]]) -> None:
        self._token = token
        self._session = aiohttp.ClientSession(timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=64))

    async def close(self) -> None:
        """Close the session; no request may follow."""
        await self._session.close()

    async def progress(self, ip: str) -> Progress | None:
        """Where a training pod is; None when it does not say."""
        return await self._get("train", f"http://{host(ip)}:{PROGRESS_PORT}/progress", Progress)

    async def server_status(self, namespace: str, ip: str) -> ServerStatus | None:
        """What a server pod has loaded; None when it does not say."""
        url = f"http://{host(ip)}:{SERVER_PORT}/tuneloop/status"
        return await self._get("server", url, ServerStatus, headers=await self._authorization(namespace))

    async def poke(self, namespace: str, ip: str, adapters: AdapterList) -> ServerStatus | None:
        """Tell a server pod its adapters now rather than when the kubelet syncs the ConfigMap."""
        url = f"http://{host(ip)}:{SERVER_PORT}/tuneloop/adapters"
        return await self._ask(
            "poke", "POST", url, ServerStatus, headers=await self._authorization(namespace), json=adapters
        )

    async def gateway_loads(self, ip: str) -> AsyncIterator[GatewayLoad]:
        """What a gateway pod has, pushed line by line until the connection ends, without an error.

        A gateway that does not push answers once and closes: then this is a poll.
        """
        url = f"http://{host(ip)}:{GATEWAY_INTERNAL_PORT}/internal/load?watch=true"
        try:
            async with self._session.get(url, timeout=STREAM_TIMEOUT, allow_redirects=False) as response:
                response.raise_for_status()
                async for line in _lines(response.content):
                    yield GatewayLoad.model_validate_json(line)
                    metrics.POLLS.labels("gateway", "answered").inc()
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
            metrics.POLLS.labels("gateway", "failed").inc()
            logger.debug("GET %s: %s", url, type(error).__name__)

    async def engine_metrics(self, namespace: str, ip: str) -> str:
        """The Prometheus page of a server pod; empty when it does not say."""
        url = f"http://{host(ip)}:{SERVER_PORT}/metrics"
        try:
            return (await self._read("GET", url, await self._authorization(namespace), None)).decode()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            metrics.POLLS.labels("engine", "failed").inc()
            logger.debug("GET %s: %s", url, type(error).__name__)
            return ""

    async def _authorization(self, namespace: str) -> dict[str, str]:
        token = await self._token(namespace)
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def _get(self, target: str, url: str, model: type[M], headers: dict[str, str] | None = None) -> M | None:
        return await self._ask(target, "GET", url, model, headers=headers or {})

    async def _ask(  # noqa: PLR0913 - one request, spelled out
        self,
        target: str,
        method: str,
        url: str,
        model: type[M],
        *,
        headers: dict[str, str],
        json: BaseModel | None = None,
    ) -> M | None:
        data = json.model_dump_json(by_alias=True).encode() if json is not None else None
        headers = headers | ({"Content-Type": "application/json"} if data else {})
        try:
            answer = await self._read(method, url, headers, data)
            parsed = model.model_validate_json(answer)
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
            metrics.POLLS.labels(target, "failed").inc()
            logger.debug("%s %s: %s", method, url, type(error).__name__)
            return None
        metrics.POLLS.labels(target, "answered").inc()
        return parsed

    async def _read(self, method: str, url: str, headers: dict[str, str], data: bytes | None) -> bytes:
        async with self._session.request(method, url, headers=headers, data=data, allow_redirects=False) as response:
            response.raise_for_status()
            if response.status != 200:
                raise aiohttp.ClientPayloadError(f"status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(65536):
                body += chunk
                if len(body) > BODY_LIMIT:
                    raise aiohttp.ClientPayloadError("answer is too large")
            return bytes(body)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines that are not empty, the last also without its end; a line over the limit is an error."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > BODY_LIMIT:
            raise aiohttp.ClientPayloadError("a line is too long")
    if rest.strip():
        yield rest


def host(ip: str) -> str:
    """An address as it stands in a URL."""
    return f"[{ip}]" if ":" in ip else ip
