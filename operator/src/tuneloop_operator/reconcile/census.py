"""How many FineTuneJobs and ModelDeployments are in which state, counted when Prometheus asks."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tuneloop_core.constants import FINETUNEJOB_KIND, MODELDEPLOYMENT_KIND
from tuneloop_operator.policy.conditions import STATES, state_of
from tuneloop_operator.reconcile.cache import Cache


class Census(Collector):
    """Counts the cache by kind, namespace and state; a state that nothing is in is 0, so that a change can be seen."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def collect(self) -> Iterable[Metric]:
        """One family, of all namespaces that have such a resource."""
        text = "FineTuneJobs and ModelDeployments by the state that their conditions tell."
        family = GaugeMetricFamily("tuneloop_resources", text, labels=["kind", "namespace", "state"])
        for kind in (FINETUNEJOB_KIND, MODELDEPLOYMENT_KIND):
            counts = Counter((key.namespace, self._state(*key)) for key in self._cache.keys(kind))
            for namespace in sorted({namespace for namespace, _ in counts}):
                for state in STATES:
                    family.add_metric([kind, namespace, state], counts[namespace, state])
        yield family

    def _state(self, kind: str, namespace: str, name: str) -> str:
        status = (self._cache.get(kind, namespace, name) or {}).get("status") or {}
        return state_of(each["type"] for each in status.get("conditions") or () if each["status"] == "True")
