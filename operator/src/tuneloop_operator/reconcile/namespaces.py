"""What a namespace has once: the store's claim and the network policies.

Never deletes the claim; policies of ours go where the chart turned them off.
"""

import asyncio
import hashlib
import logging
import time
from collections import defaultdict
from typing import Any

import orjson

from tuneloop_core.constants import STORE_CLAIM
from tuneloop_core.settings import Settings
from tuneloop_operator.build.policies import build_policies
from tuneloop_operator.build.store import build_claim
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.errors import ConflictError
from tuneloop_operator.kube.resources import CLAIMS, POLICIES
from tuneloop_operator.policy.drift import APPLIED_ANNOTATION, is_as_applied
from tuneloop_operator.reconcile.cache import Cache

logger = logging.getLogger(__name__)

Obj = dict[str, Any]


def with_digest(manifest: Obj) -> Obj:
    """The manifest with a digest of itself, by which we see without a write that it is applied already."""
    digest = hashlib.sha256(orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = metadata.get("annotations", {}) | {APPLIED_ANNOTATION: digest}
    return manifest | {"metadata": metadata | {"annotations": annotations}}


def is_ours(found: Obj) -> bool:
    """Whether we applied it: somebody else's policy of the same name is left alone."""
    return APPLIED_ANNOTATION in (found["metadata"].get("annotations") or {})


class Namespaces:
    """Sees to each namespace at its first use, and once per resync that it is in use."""

    def __init__(self, client: Client, cache: Cache, settings: Settings) -> None:
        self._client, self._cache, self._settings = client, cache, settings
        self._seen: dict[str, float] = {}
        self._ours: set[str] = set()  # namespaces whose claim carries our label, so that the watch tells when it goes
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ensure(self, namespace: str) -> None:
        """Claim and policies are as wanted when this returns; ApiError when the cluster refuses them."""
        if self._is_fresh(namespace):
            return
        async with self._locks[namespace]:
            if self._is_fresh(namespace):
                return
            await self._claim(namespace)
            for manifest in build_policies(namespace, self._settings):
                await self._policy(with_digest(manifest))
            self._seen[namespace] = time.monotonic()

    def _is_fresh(self, namespace: str) -> bool:
        """Seen to lately, and its claim still there: a namespace may be deleted and made again under its name."""
        if namespace in self._ours and self._cache.get(CLAIMS.kind, namespace, STORE_CLAIM) is None:
            return False
        return time.monotonic() - self._seen.get(namespace, float("-inf")) < self._settings.resync_seconds

    async def _claim(self, namespace: str) -> None:
        """A claim that somebody made under this name before us is used as it is."""
        known = self._cache.get(CLAIMS.kind, namespace, STORE_CLAIM) is not None
        # Asked for first: a quota refuses a second claim before its name does.
        if known or (await self._client.find(CLAIMS, namespace, STORE_CLAIM) is None and await self._make(namespace)):
            self._ours.add(namespace)
        else:
            self._ours.discard(namespace)

    async def _make(self, namespace: str) -> bool:
        """Whether this call made it."""
        try:
            made = await self._client.create(CLAIMS, build_claim(namespace, self._settings.store))
        except ConflictError:
            return False
        self._cache.put(made)
        logger.info("made claim %s in namespace %s", STORE_CLAIM, namespace)
        return True

    async def _policy(self, manifest: Obj) -> None:
        metadata = manifest["metadata"]
        found = await self._client.find(POLICIES, metadata["namespace"], metadata["name"])
        if self._settings.network_policies:
            if not is_as_applied(manifest, found):
                await self._client.apply(POLICIES, manifest)
        elif found is not None and is_ours(found):
            await self._client.delete(POLICIES, metadata["namespace"], metadata["name"], found["metadata"]["uid"])
