"""Keeps what was seen of each deployment's load, asks the autoscaler, and wakes a reconcile when replicas change.

In memory only, beside the reconciles: a calm deployment costs a look every ten seconds and no write, a busy one a look
a second, and a request that is held for a sleeping one a look at once. Never writes to the API server.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tuneloop_core.api.scaling import Scaling, ServiceLevel
from tuneloop_core.constants import MODELDEPLOYMENT_KIND
from tuneloop_core.serving import DeploymentLoad, GatewayLoad
from tuneloop_operator.names import Key
from tuneloop_operator.policy import latency
from tuneloop_operator.policy.autoscale import STABLE_SECONDS, Decision, State, begin, decide, first
from tuneloop_operator.policy.enginemetrics import parse, together
from tuneloop_operator.policy.wishes import EngineSample, Felt, History, Sample
from tuneloop_operator.reconcile.gateways import Gateways, Loads
from tuneloop_operator.reconcile.polls import PodApi

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
CALM_SECONDS = 10.0
ENGINE_SECONDS = 5.0
SNAPSHOT_SECONDS = 5.0
SETTLE_SECONDS = 15.0
"""After a replica came or went, latency is not believed for so long: requests that were held felt its start."""
CONCURRENCY = 16


@dataclass(frozen=True)
class Wish:
    """What a reconcile knows of one deployment's replicas."""

    scaling: Scaling
    slo: ServiceLevel | None
    current: int  # replicas there are, which count where nothing else is known yet
    fresh: bool = False  # it has never answered: nothing is taken away before it has


@dataclass
class Watched:
    """One deployment: what was asked of it, and what was decided."""

    namespace: str
    scaling: Scaling
    slo: ServiceLevel | None
    state: State
    ips: tuple[str, ...] = ()  # of replicas that answer
    beside: int = 0  # of them, those of a canary
    serving: str = ""  # rN: the revision whose size is decided; empty: all are
    changed: float = float("-inf")  # when these last changed
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=128))
    engines: deque[EngineSample] = field(default_factory=lambda: deque(maxlen=16))
    snapshots: deque[tuple[float, Loads]] = field(default_factory=lambda: deque(maxlen=20))
    totals: dict[str, int] = field(default_factory=dict)  # requests that ended, by gateway
    fresh: bool = False
    asked: float = float("-inf")  # when its engines were last asked
    looked: float = float("-inf")

    @property
    def busy(self) -> bool:
        """Whether it needs a look a second: something was asked lately, or replicas wait to go."""
        return len(self.state.peaks) > 1 or any(sample.active for sample in self.samples)


class Scaler:
    """All deployments whose replicas are decided by this process."""

    def __init__(self, gateways: Gateways, pods: PodApi, wake: Callable[[Key], None]) -> None:
        self._gateways, self._pods, self._wake = gateways, pods, wake
        self._watched: dict[Key, Watched] = {}
        self._gate = asyncio.Semaphore(CONCURRENCY)
        self._asking: set[asyncio.Task[None]] = set()
        gateways.on_load = self.heard

    def wanted(self, key: Key, wish: Wish) -> Decision:
        """The decision by the spec as it is now."""
        now = time.monotonic()
        watched = self._watched.get(key)
        if watched is None or watched.scaling.mode != wish.scaling.mode:
            watched = self._watched[key] = Watched(
                key.namespace, wish.scaling, wish.slo, begin(now, wish.scaling, wish.current)
            )
        watched.scaling, watched.slo, watched.fresh = wish.scaling, wish.slo, wish.fresh
        return self._decide(watched, now)

    def ready(self, key: Key, ips: Sequence[str], beside: int = 0, serving: str = "") -> None:
        """These replicas answer now; so many of them are beside ``serving`` (rN), whose size is decided."""
        watched = self._watched.get(key)
        if watched is None:
            return
        watched.beside, watched.serving = beside, serving
        if watched.ips != tuple(sorted(ips)):
            watched.ips, watched.changed = tuple(sorted(ips)), time.monotonic()
            watched.engines.clear()

    def forget(self, key: Key) -> None:
        """The resource is gone."""
        self._watched.pop(key, None)

    def heard(self, load: GatewayLoad) -> None:
        """A gateway spoke: whoever sleeps and is asked for is looked at now."""
        for each in load.deployments:
            key = Key(MODELDEPLOYMENT_KIND, each.namespace, each.name)
            watched = self._watched.get(key)
            if watched is not None and each.queued and not watched.state.replicas:
                self._look(key, watched, time.monotonic())

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            for key, watched in list(self._watched.items()):
                try:
                    self._tick(key, watched, now)
                except Exception:
                    logger.exception("%s: no decision on replicas this time", key)

    def _tick(self, key: Key, watched: Watched, now: float) -> None:
        loads = self._gateways.loads(key) if not watched.busy else {}
        if watched.busy or now - watched.looked >= CALM_SECONDS or any(is_active(each) for each in loads.values()):
            self._look(key, watched, now)

    def _look(self, key: Key, watched: Watched, now: float) -> None:
        watched.looked = now
        self._see(watched, self._gateways.loads(key), now)
        before = watched.state.replicas
        found = self._decide(watched, now)
        if found.replicas != before:
            logger.info("%s: from %d to %d replicas: %s", key, before, found.replicas, found.reason)
            self._wake(key)

    def _see(self, watched: Watched, loads: Loads, now: float) -> None:
        while watched.samples and watched.samples[0].at < now - STABLE_SECONDS:
            watched.samples.popleft()
        watched.samples.append(sample(now, loads, watched.totals, complete=self._gateways.complete()))
        watched.totals = {instance: each.requests for instance, each in loads.items()}
        if watched.slo and (not watched.snapshots or now - watched.snapshots[-1][0] >= SNAPSHOT_SECONDS):
            watched.snapshots.append((now, loads))
        if watched.ips and watched.busy and now - watched.asked >= ENGINE_SECONDS:
            watched.asked = now
            task = asyncio.create_task(self._ask(watched, watched.ips), name="engines")
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    def _decide(self, watched: Watched, now: float) -> Decision:
        since = max(now - STABLE_SECONDS, watched.changed + SETTLE_SECONDS)
        felt = felt_since(watched.snapshots, since, watched.serving)
        history = History(tuple(watched.samples), tuple(watched.engines), felt, len(watched.ips), watched.beside)
        found = decide(now, datetime.now(UTC), history, watched.scaling, watched.slo, watched.state)
        if watched.fresh:
            found = first(found, watched.scaling)
        watched.state = found.state
        return found

    async def _ask(self, watched: Watched, ips: tuple[str, ...]) -> None:
        """The engines of these replicas; their numbers count only while these are the replicas."""
        async with self._gate:
            pages = await asyncio.gather(*(self._pods.engine_metrics(watched.namespace, ip) for ip in ips))
        found = together(time.monotonic(), [gauges for page in pages if (gauges := parse(page)) is not None])
        if found is not None and watched.ips == ips:
            watched.engines.append(found)


def is_active(load: DeploymentLoad) -> bool:
    """Whether anything is asked at this moment."""
    return load.ongoing > 0 or load.queued > 0


def sample(now: float, loads: Loads, totals: dict[str, int], *, complete: bool) -> Sample:
    """All gateways together; what a gateway had ended when it was first heard is not news."""
    ended = sum(max(0, each.requests - totals.get(instance, each.requests)) for instance, each in loads.items())
    ongoing, queued = sum(each.ongoing for each in loads.values()), sum(each.queued for each in loads.values())
    return Sample(now, ongoing, queued, ended, complete)


def felt_since(snapshots: Sequence[tuple[float, Loads]], since: float, serving: str = "") -> Felt:
    """Between the first snapshot that is not before ``since`` and the last, of the revision that serves."""
    young = [loads for at, loads in snapshots if at >= since]
    if len(young) < 2:
        return Felt()
    return latency.felt(latency.of_revision(young[0], serving), latency.of_revision(young[-1], serving))
