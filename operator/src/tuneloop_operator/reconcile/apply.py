"""Server-side apply of long-lived children, only when what is there is not as it was applied.

Never applies Jobs.
"""

import time
from dataclasses import dataclass

from tuneloop_operator.kube.client import ForeignOwnerError
from tuneloop_operator.kube.resources import SERVICES, Obj, resource_of
from tuneloop_operator.names import Key, owner_uids
from tuneloop_operator.policy.drift import APPLIED_ANNOTATION, is_as_applied
from tuneloop_operator.reconcile.cache import key_of, version
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.namespaces import with_digest

WATCHED = (SERVICES.kind,)
"""Kinds whose watch tells at once that one is gone or changed; the others are looked at once per resync."""


@dataclass(frozen=True)
class Seen:
    """A child as it was when it was right; ``moment`` is monotonic, in seconds."""

    digest: str
    version: int
    moment: float


class Applier:
    """Remembers what it saw applied, so that a calm resource costs no request between two resyncs."""

    def __init__(self, context: Context) -> None:
        self._client, self._cache = context.client, context.cache
        self._resync_seconds = context.settings.resync_seconds
        self._seen: dict[Key, Seen] = {}

    async def ensure(self, manifest: Obj) -> None:
        """The child is as the manifest says; ForeignOwnerError where it belongs to another."""
        wanted = with_digest(manifest)
        key, digest = key_of(manifest), wanted["metadata"]["annotations"][APPLIED_ANNOTATION]
        if self._is_fresh(key, digest):
            return
        found = await self._find(manifest)
        if found is None or not is_as_applied(wanted, found) or not owner_uids(found) & owner_uids(wanted):
            found = await self._apply(wanted, found)
        if key.kind in WATCHED:
            self._cache.put(found)
        self._seen[key] = Seen(digest, version(found), time.monotonic())

    def _is_fresh(self, key: Key, digest: str) -> bool:
        """Whether it was right lately, and its watch has told nothing else since."""
        seen = self._seen.get(key)
        if seen is None or seen.digest != digest or time.monotonic() - seen.moment >= self._resync_seconds:
            return False
        known = self._cache.get(*key) if key.kind in WATCHED else None
        return key.kind not in WATCHED or (known is not None and version(known) == seen.version)

    async def replace(self, wanted: Obj) -> Obj:
        """Apply over whatever is there of ours, and return what the server made of it."""
        return await self._apply(wanted, await self._find(wanted))

    async def _apply(self, wanted: Obj, found: Obj | None) -> Obj:
        resource, metadata = resource_of(wanted), wanted["metadata"]
        if found is not None and not owner_uids(found) & owner_uids(wanted):
            raise ForeignOwnerError(resource, metadata["namespace"], metadata["name"])
        return await self._client.apply(resource, wanted)

    def forget(self, owner: Key) -> None:
        """The owner is gone; a later one of its name starts anew."""
        for key in [key for key in self._seen if key.namespace == owner.namespace and key.name.startswith(owner.name)]:
            del self._seen[key]

    async def _find(self, manifest: Obj) -> Obj | None:
        metadata = manifest["metadata"]
        return await self._client.find(resource_of(manifest), metadata["namespace"], metadata["name"])
