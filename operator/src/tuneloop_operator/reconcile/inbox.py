"""Where the watches put what they see: into the cache at once, and to the queue which keys to look at again.

Two steps, because kopf indexes an object before it lets any handler run: ``see`` may come long before the first lists
are complete, ``wake`` only after. An event that brings nothing new (our own write, seen already) wakes nobody.
"""

from collections.abc import Callable
from typing import Any

from tuneloop_core.constants import FINETUNEJOB_KIND, MODELDEPLOYMENT_KIND
from tuneloop_operator.names import Key
from tuneloop_operator.reconcile.cache import Cache, key_of, owner_key, version

Obj = dict[str, Any]
Dependents = Callable[[Obj], tuple[Key, ...]]
CUSTOM_KINDS = frozenset({FINETUNEJOB_KIND, MODELDEPLOYMENT_KIND})


class Inbox:
    """Fed by handlers, read by the queue."""

    def __init__(self, cache: Cache, add: Callable[[Key], None], dependents: Dependents) -> None:
        self._cache, self._add = cache, add
        self._dependents = dependents
        self._news: set[Key] = set()

    def see(self, obj: Obj) -> None:
        """An object as listed or changed."""
        key = key_of(obj)
        known = self._cache.get(*key)
        if known is not None and known["metadata"]["uid"] == obj["metadata"]["uid"] and version(known) >= version(obj):
            return
        self._cache.put(obj)
        self._news.add(key)

    def wake(self, obj: Obj) -> None:
        """Look again at whoever this object concerns, if ``see`` found news in it."""
        key = key_of(obj)
        if key in self._news:
            self._news.discard(key)
            self._wake(obj, key)

    def gone(self, obj: Obj) -> None:
        """An object was deleted."""
        key = key_of(obj)
        self._news.discard(key)
        self._cache.remove(obj)
        self._wake(obj, key)

    def wake_dependents(self, obj: Obj) -> None:
        """Look again at the resources that read this one."""
        for dependent in self._dependents(obj):
            self._add(dependent)

    def _wake(self, obj: Obj, key: Key) -> None:
        if key.kind in CUSTOM_KINDS:
            self._add(key)
            self.wake_dependents(obj)
            return
        owner = owner_key(obj)
        if owner is not None:
            self._add(owner)
