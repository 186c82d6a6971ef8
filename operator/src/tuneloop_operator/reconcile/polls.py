"""Asks our pods how they are, on a timer, beside the reconciles: a pod that hangs never holds a worker.

Answers are kept in memory only; a reconcile reads them like any other fact. Never writes to the API server.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from tuneloop_core.serving import AdapterList, GatewayLoad, ServerStatus
from tuneloop_core.stages import Progress
from tuneloop_operator.names import Key

logger = logging.getLogger(__name__)

CONCURRENCY = 32


class PodApi(Protocol):
    """What is asked of pods; ``tuneloop_operator.kube.pods.PodClient`` is the real one."""

    async def progress(self, ip: str) -> Progress | None:
        """GET /progress of a training pod."""

    async def server_status(self, namespace: str, ip: str) -> ServerStatus | None:
        """GET /tuneloop/status of a server pod."""

    async def poke(self, namespace: str, ip: str, adapters: AdapterList) -> ServerStatus | None:
        """POST /tuneloop/adapters of a server pod."""

    def gateway_loads(self, ip: str) -> AsyncIterator[GatewayLoad]:
        """GET /internal/load?watch=true of a gateway pod, line by line."""

    async def engine_metrics(self, namespace: str, ip: str) -> str:
        """GET /metrics of a server pod."""


class Polls:
    """Targets by key, set by reconciles; answers by key, read by them."""

    def __init__(self, pods: PodApi, interval: float, wake: Callable[[Key], None]) -> None:
        self._pods, self._interval, self._wake = pods, interval, wake
        self._training: dict[Key, str] = {}
        self._progress: dict[Key, Progress] = {}
        self._servers: dict[Key, dict[str, AdapterList | None]] = {}  # by address; None: not poked
        self._statuses: dict[Key, dict[str, ServerStatus]] = {}
        self._gate = asyncio.Semaphore(CONCURRENCY)
        self._hurry = asyncio.Event()

    def watch_training(self, key: Key, ip: str | None) -> None:
        """Poll the training pod of ``key`` at ``ip``, or stop with None."""
        if ip:
            self._training[key] = ip
        else:
            self._training.pop(key, None)
            self._progress.pop(key, None)

    def progress(self, key: Key) -> Progress | None:
        """The last answer of the training pod."""
        return self._progress.get(key)

    def watch_servers(self, key: Key, adapters: Mapping[str, AdapterList | None]) -> None:
        """Poll the server pods of ``key`` here and nowhere else; poke those that lack one of their adapters."""
        if not adapters:
            self.forget(key)
            return
        changed = self._servers.get(key) != adapters
        self._servers[key] = dict(adapters)
        if changed:
            self._hurry.set()

    def statuses(self, key: Key) -> dict[str, ServerStatus]:
        """The last answers of the server pods, by address; those that did not answer last time are absent."""
        return self._statuses.get(key, {})

    def forget(self, key: Key) -> None:
        """The resource is gone."""
        self._training.pop(key, None)
        self._progress.pop(key, None)
        self._servers.pop(key, None)
        self._statuses.pop(key, None)

    async def run(self) -> None:
        """Poll for ever."""
        while True:
            await self._pause()
            rounds: list[Awaitable[None]] = [self._ask_training(key, ip) for key, ip in self._training.items()]
            rounds += [self._ask_servers(key, tuple(ips)) for key, ips in self._servers.items()]
            for outcome in await asyncio.gather(*rounds, return_exceptions=True):
                if isinstance(outcome, Exception):
                    logger.error("poll failed", exc_info=outcome)

    async def _pause(self) -> None:
        """Until the next round: the interval, or at once when there is something new to tell a server."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval):
                await self._hurry.wait()
        self._hurry.clear()

    async def _ask_training(self, key: Key, ip: str) -> None:
        async with self._gate:
            answer = await self._pods.progress(ip)
        if answer is not None and key in self._training and answer != self._progress.get(key):
            self._progress[key] = answer
            self._wake(key)

    async def _ask_servers(self, key: Key, ips: Iterable[str]) -> None:
        async with self._gate:
            answers = {ip: await self._ask_server(key, ip) for ip in ips}
        known = {ip: answer for ip, answer in answers.items() if answer is not None}
        if key in self._servers and known != self._statuses.get(key, {}):
            self._statuses[key] = known
            self._wake(key)

    async def _ask_server(self, key: Key, ip: str) -> ServerStatus | None:
        """Its status; a pod that lacks an adapter, or has one too many, is told its list again."""
        answer, wanted = await self._pods.server_status(key.namespace, ip), self._servers.get(key, {}).get(ip)
        if answer is None or wanted is None:
            return answer
        if {adapter.engine_name for adapter in wanted.adapters} == {state.engine_name for state in answer.adapters}:
            return answer
        return await self._pods.poke(key.namespace, ip, wanted) or answer
