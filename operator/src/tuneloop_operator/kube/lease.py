"""Leadership by a Lease: one process acts, the others wait.

Our own loop, because the clients' elections outlive a hung renewal. The rules: a request may take less than the
renew deadline; every write asks ``check`` first, which compares the time since the last renewal was *sent* with the
lease's duration, on a clock that runs while the process is stopped and on the wall clock, and believes the worse;
whoever loses the Lease ends its process at once, for a half-stopped leader is the dangerous one. The other side
counts the duration from when it *saw* the last renewal, on its own clock, so skewed clocks do no harm.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from tuneloop_core.constants import LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY
from tuneloop_operator import metrics
from tuneloop_operator.kube.errors import ApiError, ApiUnavailableError, ConflictError, NotFoundError, WritesFencedError
from tuneloop_operator.kube.resources import LEASES, Obj, Resource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds. ``duration`` is what others wait for; we stop writing ``margin`` earlier."""

    duration: float = 20.0
    margin: float = 4.0
    renew_every: float = 4.0
    request_timeout: float = 4.0
    retry_every: float = 2.0


class LeaseClient(Protocol):
    """What the lease needs of the API client; its writes are not fenced, for they make the fence."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Obj:
        """One object."""

    async def create(self, resource: Resource, body: Obj) -> Obj:
        """Create it."""

    async def replace(self, resource: Resource, body: Obj) -> Obj:
        """Replace it, if it is still the version in the body."""


@dataclass(frozen=True)
class Moment:
    """A point in time on both clocks; seconds."""

    running: float
    wall: float

    def elapsed(self, now: "Moment") -> float:
        """The larger of both differences: a stopped clock or a stepped one must not lengthen a lease."""
        return max(now.running - self.running, now.wall - self.wall)


def current_moment() -> Moment:
    """Now; CLOCK_BOOTTIME also runs while the machine sleeps."""
    return Moment(running=time.clock_gettime(time.CLOCK_BOOTTIME), wall=time.time())


class Lease:
    """One Lease, as one candidate sees it."""

    def __init__(  # noqa: PLR0913 - each names one thing
        self,
        client: LeaseClient,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes | None = None,
        clock: Callable[[], Moment] = current_moment,
    ) -> None:
        self.namespace, self.name, self.identity = namespace, name, identity
        self.times = times or LeaseTimes()
        self._client, self._clock = client, clock
        self._held: Obj | None = None
        self._renewed: Moment | None = None
        self._seen: tuple[str, Moment] | None = None

    def check(self) -> None:
        """Raise WritesFencedError unless the Lease is surely ours now."""
        limit = self.times.duration - self.times.margin
        if self._renewed is None or self._renewed.elapsed(self._clock()) > limit:
            raise WritesFencedError(
                f"this process does not hold Lease {self.namespace}/{self.name}: nothing is written"
            )

    async def acquire(self) -> None:
        """Return once the Lease is ours; try for ever, for a standby has nothing better to do."""
        while not await self._try("acquire", self._acquire_once):  # noqa: ASYNC110 - another process sets it
            await asyncio.sleep(self.times.retry_every * random.uniform(0.8, 1.2))  # noqa: S311
        metrics.LEADER.set(1)
        logger.info("Lease %s/%s is ours", self.namespace, self.name)

    async def hold(self) -> None:
        """Renew until it cannot be; returns when the Lease is lost. The caller ends the process."""
        while True:
            await asyncio.sleep(self.times.renew_every)
            while not await self._try("renew", self._renew_once):
                await asyncio.sleep(self.times.retry_every / 2)
                if self._is_lost():
                    break
            if self._is_lost():
                metrics.LEADER.set(0)
                logger.error("Lease %s/%s is lost", self.namespace, self.name)
                return

    async def release(self) -> None:
        """Give the Lease back so that the next one starts at once; best effort."""
        held, self._held, self._renewed = self._held, None, None
        if held is None:
            return
        spec = held["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _micro_time(self._clock())}
        try:
            async with asyncio.timeout(self.times.request_timeout):
                await self._client.replace(LEASES, held | {"spec": spec})
            logger.info("Lease %s/%s is released", self.namespace, self.name)
        except (ApiError, ApiUnavailableError, TimeoutError) as error:
            logger.warning("Lease %s/%s was not released: %s", self.namespace, self.name, error)

    def _is_lost(self) -> bool:
        try:
            self.check()
        except WritesFencedError:
            return True
        return False

    async def _try(self, what: str, step: Callable[[], Awaitable[bool]]) -> bool:
        try:
            async with asyncio.timeout(self.times.request_timeout):
                return await step()
        except (ApiError, ApiUnavailableError, TimeoutError) as error:
            metrics.ERRORS.labels(f"lease-{what}").inc()
            logger.warning(
                "cannot %s Lease %s/%s: %s: %s", what, self.namespace, self.name, type(error).__name__, error
            )
            return False

    async def _acquire_once(self) -> bool:
        sent = self._clock()
        try:
            found = await self._client.get(LEASES, self.namespace, self.name)
        except NotFoundError:
            self._take(await self._client.create(LEASES, self._body(sent)), sent)
            return True
        if not self._is_free(found):
            return False
        sent = self._clock()
        self._take(await self._client.replace(LEASES, self._successor(found, sent)), sent)
        return True

    def _is_free(self, found: Obj) -> bool:
        spec = found.get("spec", {})
        if spec.get("holderIdentity", "") in ("", self.identity):
            return True  # released, or held by this very pod before its container was started anew
        version, now = found["metadata"]["resourceVersion"], self._clock()
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, now)
            return False
        # Only the running clock: a stepped wall clock must not shorten another's lease.
        return now.running - self._seen[1].running > float(spec.get("leaseDurationSeconds", self.times.duration))

    async def _renew_once(self) -> bool:
        assert self._held is not None
        sent = self._clock()
        spec = self._held["spec"] | {"renewTime": _micro_time(sent)}
        try:
            self._take(await self._client.replace(LEASES, self._held | {"spec": spec}), sent)
        except ConflictError:
            return await self._renew_after_conflict()
        metrics.LEASE_RENEWALS.inc()
        return True

    async def _renew_after_conflict(self) -> bool:
        """Somebody wrote the Lease: an earlier renewal of ours whose answer was lost, or a new holder."""
        found = await self._client.get(LEASES, self.namespace, self.name)
        if found.get("spec", {}).get("holderIdentity") != self.identity:
            self._renewed = None
            return False
        self._held = found
        return False

    def _take(self, held: Obj, sent: Moment) -> None:
        self._held, self._renewed = held, sent

    def _body(self, now: Moment) -> Obj:
        labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "lease"}
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"namespace": self.namespace, "name": self.name, "labels": labels},
            "spec": self._spec(now, transitions=0),
        }

    def _successor(self, found: Obj, now: Moment) -> Obj:
        transitions = int(found.get("spec", {}).get("leaseTransitions") or 0) + 1
        body = self._body(now)
        metadata = found["metadata"] | {"labels": found["metadata"].get("labels", {}) | body["metadata"]["labels"]}
        return body | {"metadata": metadata, "spec": self._spec(now, transitions)}

    def _spec(self, now: Moment, transitions: int) -> Obj:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self.times.duration),
            "acquireTime": _micro_time(now),
            "renewTime": _micro_time(now),
            "leaseTransitions": transitions,
        }


def _micro_time(now: Moment) -> str:
    return datetime.fromtimestamp(now.wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
