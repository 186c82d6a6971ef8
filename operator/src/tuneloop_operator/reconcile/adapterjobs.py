"""The FineTuneJobs that ModelDeployments read, and who must look again when one of them changes. Never decides."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

from tuneloop_core.api.affinity import LabelSelector
from tuneloop_core.constants import FINETUNEJOB_KIND
from tuneloop_operator.kube.resources import FINETUNEJOBS, Obj
from tuneloop_operator.names import Key
from tuneloop_operator.policy import candidates
from tuneloop_operator.policy.candidates import Candidate
from tuneloop_operator.reconcile.cache import Cache


class ReadJobs:
    """Who reads which job: by its name, and by a selector of its namespace."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._by_name: defaultdict[Key, set[Key]] = defaultdict(set)
        self._by_labels: defaultdict[str, dict[Key, list[LabelSelector]]] = defaultdict(dict)

    def reader(self, key: Key) -> "JobsReader":
        """The jobs as one reconcile of this deployment sees them; what it reads from now on wakes it."""
        self._by_labels[key.namespace].pop(key, None)
        return JobsReader(self, key)

    def dependents(self, obj: Obj) -> tuple[Key, ...]:
        """Deployments to look at again after a change of this object."""
        if obj["kind"] != FINETUNEJOB_KIND:
            return ()
        metadata = obj["metadata"]
        named = self._by_name.get(Key(FINETUNEJOB_KIND, metadata["namespace"], metadata["name"]), set())
        labels = metadata.get("labels") or {}
        selecting = {
            key
            for key, selectors in self._by_labels.get(metadata["namespace"], {}).items()
            if any(candidates.matches(selector, labels) for selector in selectors)
        }
        return tuple(named | selecting)

    def forget(self, key: Key) -> None:
        """The deployment is gone."""
        self._by_labels[key.namespace].pop(key, None)
        for waiting in self._by_name.values():
            waiting.discard(key)

    def get(self, key: Key, name: str) -> Obj | None:
        """A job by its name."""
        self._by_name[Key(FINETUNEJOB_KIND, key.namespace, name)].add(key)
        return self._cache.get(FINETUNEJOBS.kind, key.namespace, name)

    def select(self, key: Key, selector: LabelSelector) -> None:
        """A change of any job with these labels wakes this deployment."""
        self._by_labels[key.namespace].setdefault(key, []).append(selector)

    def all(self, namespace: str) -> list[Obj]:
        """Every job of a namespace."""
        keys = [key for key in self._cache.keys(FINETUNEJOBS.kind) if key.namespace == namespace]
        return [obj for key in keys if (obj := self._cache.get(*key)) is not None]


class JobsReader:
    """``policy.adapters.Jobs`` for one reconcile."""

    def __init__(self, jobs: ReadJobs, key: Key) -> None:
        self._jobs, self._key = jobs, key

    @cached_property
    def _all(self) -> list[Obj]:
        return self._jobs.all(self._key.namespace)

    def find(self, name: str) -> Candidate | None:
        """The job of this name."""
        obj = self._jobs.get(self._key, name)
        return candidates.read(obj) if obj is not None else None

    def matching(self, selector: LabelSelector) -> Sequence[Candidate]:
        """Jobs with these labels; one that loses them wakes the deployment too."""
        self._jobs.select(self._key, selector)
        found = [obj for obj in self._all if candidates.matches(selector, obj["metadata"].get("labels") or {})]
        for obj in found:
            self._jobs.get(self._key, obj["metadata"]["name"])
        return [candidates.read(obj) for obj in found]
