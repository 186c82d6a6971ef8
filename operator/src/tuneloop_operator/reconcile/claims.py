"""Names that several ModelDeployments claim, and who must look again when one of them changes. Never decides."""

from collections import defaultdict

from tuneloop_core.constants import MODELDEPLOYMENT_KIND
from tuneloop_operator.kube.resources import Obj
from tuneloop_operator.names import Key
from tuneloop_operator.policy import owners
from tuneloop_operator.reconcile.cache import Cache, key_of


class Claims:
    """Who lost a name to whom, as of each one's last look."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._losers: defaultdict[Key, set[Key]] = defaultdict(set)  # by who has the name

    def taken(self, key: Key, obj: Obj) -> dict[str, str]:
        """The names of this one that belong to an older one; a change of that one wakes this from now on."""
        found = owners.taken(obj, self._rivals(obj))
        self.forget(key)
        for owner in set(found.values()):
            self._losers[Key(MODELDEPLOYMENT_KIND, key.namespace, owner)].add(key)
        return found

    def dependents(self, obj: Obj) -> tuple[Key, ...]:
        """Deployments to look at again after a change of this object: they claim a name of it, or lost one to it."""
        if obj["kind"] != MODELDEPLOYMENT_KIND:
            return ()
        return tuple({key_of(each) for each in self._rivals(obj)} | self._losers.get(key_of(obj), set()))

    def forget(self, key: Key) -> None:
        """The deployment is gone, or looked at anew."""
        for owner in [owner for owner, losers in self._losers.items() if key in losers]:
            self._losers[owner].discard(key)
            if not self._losers[owner]:
                del self._losers[owner]

    def _rivals(self, obj: Obj) -> list[Obj]:
        """The other deployments that claim a name of this one."""
        claimed = (self._cache.claimants(obj["metadata"]["namespace"], name) for name in owners.names_of(obj))
        keys = {key for each in claimed for key in each} - {key_of(obj)}
        return [found for key in keys if (found := self._cache.get(*key)) is not None]
