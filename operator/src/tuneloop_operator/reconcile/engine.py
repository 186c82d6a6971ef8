"""One entry for every key: look the object up, hand it to its reconciler, measure. Never decides."""

import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

from tuneloop_core.constants import FINETUNEJOB_KIND, MODELDEPLOYMENT_KIND
from tuneloop_operator import metrics
from tuneloop_operator.kube.errors import ConflictError, NotFoundError
from tuneloop_operator.kube.resources import BY_KIND, Obj
from tuneloop_operator.logs import current_key
from tuneloop_operator.names import Key
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.queue import backoff

logger = logging.getLogger(__name__)

Wake = Callable[[Obj], None]
"""Look again at whoever depends on an object that we wrote ourselves; its watch event is no news then."""


class Reconciler(Protocol):
    """One kind's reconciler."""

    async def reconcile(self, key: Key, obj: Obj) -> float | None:
        """One look; seconds until the next, or None."""

    def forget(self, key: Key) -> None:
        """The resource is gone."""


class Engine:
    """Dispatches keys to reconcilers."""

    def __init__(self, context: Context, finetune: Reconciler, deployment: Reconciler, wake: Wake) -> None:
        self._context, self._wake = context, wake
        self._reconcilers = {FINETUNEJOB_KIND: finetune, MODELDEPLOYMENT_KIND: deployment}
        self._verified: dict[Key, float] = {}
        self._uids: dict[Key, str] = {}  # whose memory we keep
        self._stale: dict[Key, int] = {}  # looks in a row that ended with "our copy is old"

    async def process(self, key: Key) -> float | None:
        """One look at one key; seconds until the next, or None when it is gone or needs none."""
        token = current_key.set(key)
        started = time.perf_counter()
        outcome = "error"
        try:
            delay = await self._process(key)
        except ConflictError:
            outcome = "conflict"  # our copy is old, and the watch may be late
            await self._verify(key)
            return self._soon(key)
        else:
            outcome = "ok"
            return delay
        finally:
            metrics.RECONCILES.labels(key.kind, outcome).inc()
            metrics.RECONCILE_SECONDS.labels(key.kind).observe(time.perf_counter() - started)
            current_key.reset(token)

    async def _process(self, key: Key) -> float | None:
        obj = await self._look_up(key)
        if obj is None or obj["metadata"].get("deletionTimestamp"):
            self._forget(key)
            self._verified.pop(key, None)
            self._stale.pop(key, None)
            return None
        if self._uids.get(key) != obj["metadata"]["uid"]:
            self._forget(key)  # of one with this name that was deleted, maybe since the last look
            self._uids[key] = obj["metadata"]["uid"]
        try:
            delay = await self._reconcilers[key.kind].reconcile(key, obj)
        except NotFoundError:
            return await self._after_not_found(key)
        self._stale.pop(key, None)
        written = self._context.cache.get(*key)
        if written is not None and written is not obj:
            self._wake(written)
        return self._resync(key, delay)

    def _forget(self, key: Key) -> None:
        self._uids.pop(key, None)
        self._context.polls.forget(key)
        self._reconcilers[key.kind].forget(key)

    async def _after_not_found(self, key: Key) -> float | None:
        """Something we wrote to is gone: read everything of this key anew."""
        self._verified.pop(key, None)
        await self._verify(key)
        return self._soon(key) if self._context.cache.get(*key) is not None else None

    def _soon(self, key: Key) -> float:
        """Seconds until the next look with a fresh copy: at once the first time, then as after failures."""
        self._stale[key] = self._stale.get(key, 0) + 1
        return backoff(self._stale[key], random.random())  # noqa: S311

    async def _look_up(self, key: Key) -> Obj | None:
        """The cached object; once per resync it is read anew with its children.

        A watch that was interrupted for long lists again and cannot tell what was deleted meanwhile.
        """
        now = time.monotonic()
        last = self._verified.setdefault(key, now)
        if now - last >= self._context.settings.resync_seconds:
            await self._verify(key)
            self._verified[key] = now
        return self._context.cache.get(*key)

    async def _verify(self, key: Key) -> None:
        cache = self._context.cache
        cached = [obj for obj in (cache.get(*key), *cache.all_children(key)) if obj is not None]
        for obj in cached:
            metadata = obj["metadata"]
            try:
                found = await self._context.client.get(BY_KIND[obj["kind"]], metadata["namespace"], metadata["name"])
            except NotFoundError:
                cache.remove(obj)
                continue
            if found["metadata"]["uid"] != metadata["uid"]:
                cache.remove(obj)
            cache.put(found)

    def _resync(self, key: Key, delay: float | None) -> float | None:
        """Slow and jittered; a finished resource (None) is left alone until an event comes."""
        if delay is None:
            self._verified.pop(key, None)
            return None
        slow = self._context.settings.resync_seconds * random.uniform(1.0, 1.2)  # noqa: S311
        return min(delay, slow)
