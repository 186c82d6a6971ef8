"""Server-side apply of long-lived children, only when what is there was not made from the same manifest.

Never applies Jobs.
"""

import time

from tuneloop_operator.kube.client import Client, ForeignOwnerError, owner_uids
from tuneloop_operator.kube.errors import NotFoundError
from tuneloop_operator.kube.resources import Obj, resource_of
from tuneloop_operator.names import Key
from tuneloop_operator.reconcile.cache import key_of
from tuneloop_operator.reconcile.namespaces import APPLIED_ANNOTATION, is_applied, with_digest

LOOK_AGAIN_SECONDS = 600.0


class Applier:
    """Remembers what it saw applied, so that a calm resource costs no request; looks again every ten minutes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen: dict[Key, tuple[str, float]] = {}

    async def ensure(self, manifest: Obj) -> None:
        """The child is as the manifest says; ForeignOwnerError where it belongs to another."""
        wanted = with_digest(manifest)
        key, digest = key_of(manifest), wanted["metadata"]["annotations"][APPLIED_ANNOTATION]
        seen = self._seen.get(key)
        if seen is not None and seen[0] == digest and time.monotonic() - seen[1] < LOOK_AGAIN_SECONDS:
            return
        found = await self._find(manifest)
        if not is_applied(wanted, found) or found is None or not owner_uids(found) & owner_uids(wanted):
            await self._apply(wanted, found)
        self._seen[key] = (digest, time.monotonic())

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
        try:
            return await self._client.get(resource_of(manifest), metadata["namespace"], metadata["name"])
        except NotFoundError:
            return None
