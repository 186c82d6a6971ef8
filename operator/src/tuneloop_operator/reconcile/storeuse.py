"""What a namespace's store is used for, gathered from the cache at most once a minute. Never decides, never removes."""

from datetime import datetime, timedelta

from tuneloop_core.stages import StoreUse
from tuneloop_operator.kube.resources import DEPLOYMENTS, FINETUNEJOBS, MODELDEPLOYMENTS, Obj
from tuneloop_operator.policy.storeuse import store_use
from tuneloop_operator.reconcile.context import Context

KINDS = (FINETUNEJOBS.kind, MODELDEPLOYMENTS.kind, DEPLOYMENTS.kind)
KEPT = timedelta(minutes=1)  # a burst of jobs does not look through the cache once for each


class StoreUses:
    """By namespace. A list that is a minute old is as good: fetch keeps whatever was used since it was made."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[str, tuple[datetime, StoreUse | None]] = {}

    def of(self, namespace: str) -> StoreUse | None:
        """What is in use; None where that is too much to list."""
        now = self._context.now()
        made, use = self._known.get(namespace, (now - 2 * KEPT, None))
        if now - made > KEPT:
            use = self._gathered(namespace, now)
            self._known[namespace] = now, use
        return use

    def _gathered(self, namespace: str, now: datetime) -> StoreUse | None:
        jobs, deployments, servers = (self._all(namespace, kind) for kind in KINDS)
        return store_use(jobs, deployments, servers, now)

    def _all(self, namespace: str, kind: str) -> list[Obj]:
        cache = self._context.cache
        keys = (key for key in cache.keys(kind) if key.namespace == namespace)
        return [obj for key in keys if (obj := cache.get(*key)) is not None]
