"""Who used what: requests and tokens per key and model (a base or one of its adapters), for Prometheus.

Labels are names of the routing table only. There may be hundreds of keys and names in one deployment, so after
``SERIES_LIMIT`` pairs further ones are counted together under the key ``other``: the access log still tells them apart.
Never forgets what was used while the deployment lives.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SERIES_LIMIT: Final = 2000
OTHER: Final = "other"
NAMES: Final = ["namespace", "deployment", "model", "key"]

Who = tuple[str, str, str, str]  # namespace, deployment, model, key


@dataclass
class Used:
    """Counted since the start."""

    requests: int = 0
    limited: int = 0
    prompt: int = 0
    completion: int = 0


class UsageCollector(Collector):
    """Counts, and shows what it counted."""

    def __init__(self) -> None:
        self.used: dict[Who, Used] = {}

    def of(self, who: Who) -> Used:
        """The account of a key and a model."""
        found = self.used.get(who)
        if found is None and len(self.used) >= SERIES_LIMIT:
            who = (*who[:3], OTHER)
            found = self.used.get(who)
        if found is None:
            found = self.used[who] = Used()
        return found

    def forget_all_but(self, owners: set[tuple[str, str]]) -> None:
        """Drop the accounts of deployments that are gone."""
        for who in [who for who in self.used if who[:2] not in owners]:
            del self.used[who]

    def collect(self) -> Iterable[Metric]:
        """All families."""
        requests = CounterMetricFamily("tuneloop_gateway_key_requests", "Requests of a key that ended.", labels=NAMES)
        text = "Requests of a key that were refused by its limits."
        limited = CounterMetricFamily("tuneloop_gateway_key_limited", text, labels=NAMES)
        text = "Tokens of a key by the server's usage."
        tokens = CounterMetricFamily("tuneloop_gateway_key_tokens", text, labels=[*NAMES, "type"])
        for who, used in sorted(self.used.items()):
            requests.add_metric(list(who), used.requests)
            limited.add_metric(list(who), used.limited)
            tokens.add_metric([*who, "prompt"], used.prompt)
            tokens.add_metric([*who, "completion"], used.completion)
        yield from (requests, limited, tokens)
