"""One gateway process: listeners, watches, the table between them, and an orderly end.

Everything runs on one event loop in one process; more throughput is more replicas. Never decides anything about a
request.
"""

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp

from tuneloop_core.constants import API_VERSION, LABEL_MANAGED_BY, MANAGED_BY, MODELDEPLOYMENT_PLURAL
from tuneloop_core.servertokens import ServerToken
from tuneloop_gateway.accesslog import AccessLog
from tuneloop_gateway.cluster import Access, connector
from tuneloop_gateway.config import Config
from tuneloop_gateway.errors import Reply
from tuneloop_gateway.exposition import registry
from tuneloop_gateway.http_server import Application, ServerConnection, ServerState
from tuneloop_gateway.internal import Internal
from tuneloop_gateway.ledger import Ledger
from tuneloop_gateway.measure import Measures
from tuneloop_gateway.peers import ready_gateways
from tuneloop_gateway.proxy import Proxy
from tuneloop_gateway.routes import SERVICE_LABEL, Deployment, Slice, build_table, parse_deployment, parse_slice
from tuneloop_gateway.server_tokens import ServerTokens, ask_token
from tuneloop_gateway.upstream_metrics import UpstreamCollector
from tuneloop_gateway.watch import Pace, Watcher

log = logging.getLogger(__name__)

BACKLOG = 4096
NO_IPV6 = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # a node may have switched it off
REBUILD_SECONDS = 0.02  # changes that come together make one table
SWEEP_SECONDS = 1.0


class Gateway:
    """The process's parts, put together."""

    def __init__(self, config: Config, access: Access, pace: Pace | None = None) -> None:
        self._config = config
        self._access = access
        settings = config.settings.gateway
        self._session: aiohttp.ClientSession | None = None
        tokens = ServerTokens(self._ask_token)
        self.measures = Measures(config.instance, datetime.now(UTC).isoformat(timespec="seconds"))
        ledger = Ledger(AccessLog(settings.access_log.enabled, settings.access_log.prompts))
        allow = settings.allow_without_keys
        self.proxy = Proxy(config.limits, allow, self.measures, tokens, ledger, settings.hold)
        self._rebuilding: asyncio.TimerHandle | None = None
        self._deployments = [
            Watcher(path, parse_deployment, self._changed, pace=pace)
            for path in _paths(f"/apis/{API_VERSION}", MODELDEPLOYMENT_PLURAL, config.settings.namespaces)
        ]
        selector = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
        self._slices = [
            Watcher(path, parse_slice, self._changed, selector, pace)
            for path in _paths("/apis/discovery.k8s.io/v1", "endpointslices", config.settings.namespaces)
        ]
        path = f"/apis/discovery.k8s.io/v1/namespaces/{config.settings.namespace}/endpointslices"
        self._peers = Watcher(path, parse_slice, self._count_peers, f"{SERVICE_LABEL}={settings.service}", pace)
        self._public = self._state(self.proxy)
        metrics = registry(
            self.measures, self._gauges, [UpstreamCollector(self.proxy.forwarder), ledger.usage, ledger.log]
        )
        self._internal = self._state(Internal(self.measures, self.proxy.holds, metrics, self._is_ready))
        self._public.refused = self._count_refusal

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then end in order: not ready, no new connections, streams finish."""
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector()))
            self._session = session
            tasks = [asyncio.create_task(self._sweep())]
            watchers = (*self._watchers(), self._peers)
            tasks += [asyncio.create_task(each.run(session, self._access)) for each in watchers]
            stack.push_async_callback(_cancel, tasks)
            internal = await self._listen(self._internal, self._config.internal_port)
            public = await self._listen(self._public, self._config.port)
            log.info("the gateway listens", extra={"port": self._config.port, "internal": self._config.internal_port})
            await _first(stop.wait(), tasks)
            await self._end(public)
            internal.close()

    # ---- the table ----

    def _watchers(self) -> Iterator[Watcher[Any]]:
        yield from self._deployments
        yield from self._slices

    def _changed(self) -> None:
        """Something was seen; rebuild soon, once everything was listed that can be."""
        if self._rebuilding is None and self._is_settled():
            self._rebuilding = asyncio.get_running_loop().call_later(REBUILD_SECONDS, self._rebuild)

    def _is_settled(self) -> bool:
        """One team's namespace that is gone keeps no other team waiting; where all are forbidden, it is our fault."""
        listed = any(each.synced.is_set() for each in self._deployments)
        return listed and all(each.settled for each in self._watchers())

    def _count_peers(self) -> None:
        """Limits per key are shared among the ready gateways; serving waits for no news of them."""
        service = self._config.settings.gateway.service
        self.proxy.ledger.gateways = ready_gateways(self._peers.objects.values(), service)

    def _rebuild(self) -> None:
        self._rebuilding = None
        deployments: list[Deployment] = [found for each in self._deployments for found in each.objects.values()]
        slices: list[Slice] = [found for each in self._slices for found in each.objects.values()]
        first = self.proxy.table is None
        self.proxy.set_table(build_table(deployments, slices, self._config.settings.gateway.allow_without_keys))
        if first:
            log.info("the gateway is ready", extra={"deployments": len(deployments)})

    # ---- housekeeping ----

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            self._public.sweep(now)
            self._internal.sweep(now)
            self.proxy.sweep(now)

    async def _ask_token(self, namespace: str) -> ServerToken:
        assert self._session is not None, "namespaces are known from the watches, which have the session"
        own = self._config.settings
        return await ask_token(self._session, self._access, own.namespace, own.gateway.service_account, namespace)

    def _gauges(self) -> dict[str, float]:
        routes = [route for namespace in (self.proxy.table or {}).values() for route in namespace.models.values()]
        allowed = [each for each in self._watchers() if not each.forbidden]
        heard = min((each.heard for each in allowed), default=0.0)
        return {
            "ready": float(self._is_ready()),
            "watch_stale_seconds": time.monotonic() - heard,
            "forbidden_watches": len(list(self._watchers())) - len(allowed),
            "ready_endpoints": len({address for route in routes for address in route.addresses}),
            "models": len(routes),
            "ready_gateways": self.proxy.ledger.gateways,
            "client_connections": len(self._public.connections),
            "buffered_bytes": self._public.buffered,
        }

    def _count_refusal(self, reply: Reply) -> None:
        self.measures.reject(reply.status, reply.reason)

    def _is_ready(self) -> bool:
        return self.proxy.ready

    # ---- listeners ----

    def _state(self, application: Application) -> ServerState:
        return ServerState(application, self._config.limits)

    async def _listen(self, state: ServerState, port: int) -> asyncio.Server:
        make: Callable[[], ServerConnection] = lambda: ServerConnection(state)  # noqa: E731
        loop = asyncio.get_running_loop()
        if self._config.host:
            return await loop.create_server(make, self._config.host, port, backlog=BACKLOG)
        try:
            return await loop.create_server(make, None, port, backlog=BACKLOG)
        except OSError as error:
            if error.errno not in NO_IPV6:
                raise
            return await loop.create_server(make, "0.0.0.0", port, backlog=BACKLOG)  # noqa: S104 - a pod's own network

    async def _end(self, public: asyncio.Server) -> None:
        """First not ready, and still serving, until the endpoints have gone round; then streams finish."""
        limits = self._config.limits
        self.proxy.drain()
        log.info("stopping: not ready from now on", extra={"connections": len(self._public.connections)})
        await asyncio.sleep(limits.lame_seconds)
        public.close()
        self._public.drain()
        until = time.monotonic() + limits.grace_seconds
        while self._public.connections and time.monotonic() < until:  # noqa: ASYNC110 - once in a lifetime
            await asyncio.sleep(0.05)
        left = list(self._public.connections)
        for connection in left:
            connection.abort()
        self.proxy.close()
        log.info("stopped", extra={"cut_off": len(left)})


def _paths(prefix: str, plural: str, namespaces: list[str]) -> list[str]:
    """One path for the whole cluster, or one a namespace."""
    return [f"{prefix}/namespaces/{name}/{plural}" for name in namespaces] or [f"{prefix}/{plural}"]


async def _first(stop: Coroutine[Any, Any, Any], tasks: list[asyncio.Task[None]]) -> None:
    """Wait for the stop; a task that dies is a bug and ends the process, so that the kubelet starts a new one."""
    waiting = asyncio.create_task(stop)
    await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in tasks:
        if task.done():
            task.result()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
