"""Listens to every gateway: what is asked of each deployment now, and what users felt in the last minute. Never writes.

Each gateway pushes its load over a long connection; one that ends is opened anew with backoff, and a gateway that
cannot push is thereby polled. A gateway that is not heard makes the load unknown rather than small.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tuneloop_core.api.modeldeployment_status import LatencyStatus
from tuneloop_core.constants import MODELDEPLOYMENT_KIND
from tuneloop_core.serving import DeploymentLoad, GatewayLoad
from tuneloop_core.settings import Settings
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.errors import ApiError, ApiUnavailableError
from tuneloop_operator.kube.resources import ENDPOINT_SLICES
from tuneloop_operator.names import Key
from tuneloop_operator.policy import latency
from tuneloop_operator.reconcile.arms import ArmLedger
from tuneloop_operator.reconcile.polls import PodApi
from tuneloop_operator.reconcile.queue import cancel

logger = logging.getLogger(__name__)

FIND_SECONDS = 10.0
WINDOW_SECONDS = 60.0
STALE_SECONDS = 25.0  # a sign of life comes every 10 s
FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 10.0
SERVICE_NAME_LABEL = "kubernetes.io/service-name"

Loads = dict[str, DeploymentLoad]  # by gateway instance
Snapshot = dict[Key, Loads]


@dataclass(frozen=True)
class Heard:
    """What one gateway said last, and when."""

    load: GatewayLoad
    at: float
    deployments: dict[tuple[str, str], DeploymentLoad]  # by namespace and name

    @classmethod
    def now(cls, load: GatewayLoad) -> "Heard":
        """It said this now."""
        return cls(load, time.monotonic(), {(each.namespace, each.name): each for each in load.deployments})


class Gateways:
    """All gateway pods, as their Service has them."""

    def __init__(self, client: Client, pods: PodApi, settings: Settings, wake: Callable[[Key], None]) -> None:
        self._client, self._pods, self._settings, self._wake = client, pods, settings, wake
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._heard: dict[str, Heard] = {}
        self._lost = asyncio.Event()
        self._begin: Snapshot | None = None
        self._begun_at = 0.0
        self._latency: dict[Key, LatencyStatus] = {}
        self.on_load: Callable[[GatewayLoad], None] = lambda _: None
        self.arms = ArmLedger(wake)

    def latency(self, key: Key) -> LatencyStatus | None:
        """Latency that is worth writing; None before the first window with requests."""
        return self._latency.get(key)

    def forget(self, key: Key) -> None:
        """The resource is gone: one of the same name that comes later begins with a window of its own."""
        self._latency.pop(key, None)
        self.arms.forget(key)
        if self._begin is not None:
            self._begin[key] = self.loads(key)

    def loads(self, key: Key) -> Loads:
        """What each gateway said last of one deployment; those that know nothing of it are absent."""
        found = ((heard, heard.deployments.get((key.namespace, key.name))) for heard in self._heard.values())
        return {instance_of(heard.load): each for heard, each in found if each is not None}

    def complete(self) -> bool:
        """Whether there are gateways and every one was heard lately."""
        oldest = time.monotonic() - STALE_SECONDS
        known = [self._heard.get(ip) for ip in self._streams]
        return bool(known) and all(heard is not None and heard.at >= oldest for heard in known)

    async def run(self) -> None:
        """Listen for ever."""
        try:
            while True:
                await self._look()
                await self._pause()
        finally:
            await cancel(*self._streams.values())

    async def _look(self) -> None:
        try:
            self._follow(await self._find())
            self._round(time.monotonic())
        except (ApiError, ApiUnavailableError) as error:
            logger.warning("gateways are not looked for now: %s", error)
        except Exception:
            logger.exception("one look at the gateways failed; the next comes in %.0f s", FIND_SECONDS)

    async def _pause(self) -> None:
        """Until the next look; a connection that was lost brings it forward, for another gateway may have come."""
        self._lost.clear()
        try:
            async with asyncio.timeout(FIND_SECONDS):
                await self._lost.wait()
            await asyncio.sleep(FIRST_BACKOFF_SECONDS)
        except TimeoutError:
            return

    async def _find(self) -> set[str]:
        """Addresses of the gateway's pods, also of those on their way out: their streams are load."""
        gateway = self._settings.gateway
        slices = await self._client.list(
            ENDPOINT_SLICES, self._settings.namespace, labels=f"{SERVICE_NAME_LABEL}={gateway.service}"
        )
        return {ip for each in slices for end in each.get("endpoints") or [] for ip in end["addresses"]}

    def _follow(self, ips: set[str]) -> None:
        for ip in self._streams.keys() - ips:
            self._streams.pop(ip).cancel()
            self._heard.pop(ip, None)
        for ip in ips - self._streams.keys():
            self._streams[ip] = asyncio.create_task(self._listen(ip), name=f"gateway {ip}")

    async def _listen(self, ip: str) -> None:
        """One gateway, connection after connection."""
        wait = FIRST_BACKOFF_SECONDS
        while True:
            try:
                async for load in self._pods.gateway_loads(ip):
                    self._heard[ip] = Heard.now(load)
                    self.on_load(load)
                    wait = FIRST_BACKOFF_SECONDS
            except Exception:
                logger.exception("what gateway %s said could not be used; it is asked again", ip)
            self._lost.set()
            await asyncio.sleep(wait)
            wait = min(2 * wait, MAX_BACKOFF_SECONDS)

    def _round(self, now: float) -> None:
        snapshot = by_deployment([heard.load for heard in self._heard.values()])
        if self._heard:
            self.arms.note(snapshot)
        if self._begin is None:
            self._begin, self._begun_at = snapshot, now
        elif now - self._begun_at >= WINDOW_SECONDS:
            self._close_window(self._begin, snapshot, now - self._begun_at)
            self._begin, self._begun_at = snapshot, now

    def _close_window(self, before: Snapshot, after: Snapshot, seconds: float) -> None:
        for key, loads in after.items():
            found = latency.window(before.get(key, {}), loads, seconds, datetime.now(UTC))
            if found is not None and latency.moved(self._latency.get(key), found):
                self._latency[key] = found
                self._wake(key)


def instance_of(load: GatewayLoad) -> str:
    """One life of one gateway: a restarted one is another."""
    return f"{load.instance}/{load.started}"


def by_deployment(loads: list[GatewayLoad]) -> Snapshot:
    """Loads of all gateways by deployment."""
    found: defaultdict[Key, Loads] = defaultdict(dict)
    for load in loads:
        for each in load.deployments:
            found[Key(MODELDEPLOYMENT_KIND, each.namespace, each.name)][instance_of(load)] = each
    return dict(found)
