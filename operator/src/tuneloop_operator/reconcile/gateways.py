"""Asks the gateways for what users felt, and keeps each deployment's latency of the last minute. Never writes."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
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
from tuneloop_operator.reconcile.polls import PodApi

logger = logging.getLogger(__name__)

POLL_SECONDS = 10.0
FIND_SECONDS = 60.0
WINDOW_SECONDS = 60.0
SERVICE_NAME_LABEL = "kubernetes.io/service-name"

Snapshot = dict[Key, dict[str, DeploymentLoad]]  # by deployment, then by gateway instance


class Gateways:
    """All gateway pods, as their Service has them."""

    def __init__(self, client: Client, pods: PodApi, settings: Settings, wake: Callable[[Key], None]) -> None:
        self._client, self._pods, self._settings, self._wake = client, pods, settings, wake
        self._ips: list[str] = []
        self._found_at = float("-inf")
        self._begin: Snapshot | None = None
        self._begun_at = 0.0
        self._latency: dict[Key, LatencyStatus] = {}

    def latency(self, key: Key) -> LatencyStatus | None:
        """Latency that is worth writing; None before the first window with requests."""
        return self._latency.get(key)

    async def run(self) -> None:
        """Poll for ever."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self._find()
                await self._round(time.monotonic())
            except (ApiError, ApiUnavailableError) as error:
                logger.warning("gateways are not polled now: %s", error)
            except Exception:
                logger.exception("one look at the gateways failed; the next comes in %.0f s", POLL_SECONDS)

    async def _find(self) -> None:
        """Addresses of the gateway's pods, read anew once a minute."""
        if time.monotonic() - self._found_at < FIND_SECONDS:
            return
        gateway = self._settings.gateway
        slices = await self._client.list(
            ENDPOINT_SLICES, self._settings.namespace, labels=f"{SERVICE_NAME_LABEL}={gateway.service}"
        )
        self._ips = sorted({ip for each in slices for end in each.get("endpoints") or [] for ip in end["addresses"]})
        self._found_at = time.monotonic()

    async def _round(self, now: float) -> None:
        loads = [load for load in await asyncio.gather(*map(self._pods.gateway_load, self._ips)) if load is not None]
        snapshot = by_deployment(loads)
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


def by_deployment(loads: list[GatewayLoad]) -> Snapshot:
    """Loads of all gateways by deployment; a restarted gateway is another instance."""
    found: defaultdict[Key, dict[str, DeploymentLoad]] = defaultdict(dict)
    for load in loads:
        for each in load.deployments:
            found[Key(MODELDEPLOYMENT_KIND, each.namespace, each.name)][f"{load.instance}/{load.started}"] = each
    return dict(found)
