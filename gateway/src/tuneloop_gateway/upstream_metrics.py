"""Prometheus families of what the forwarder learnt: ejected replicas and repeated requests.

Computed when asked for. Never keeps a number of its own.
"""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tuneloop_gateway.forward import Forwarder


class UpstreamCollector(Collector):
    """Labels are names of the routing table and a few reasons, so their number is bounded."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    def collect(self) -> Iterable[Metric]:
        """All families."""
        text = "Server pods that are passed over because they failed."
        out = GaugeMetricFamily("tuneloop_gateway_ejected_endpoints", text, labels=["namespace", "deployment"])
        for owner, count in sorted(self._forwarder.ejected().items()):
            out.add_metric(list(owner), count)
        yield out
        yield _counter("ejections", "Times that a server pod was ejected.", self._forwarder.ejections)
        yield _counter("retries", "Requests sent once more, to another server pod.", self._forwarder.retries)


def _counter(name: str, text: str, counted: dict[tuple[str, str, str], int]) -> Metric:
    family = CounterMetricFamily(f"tuneloop_gateway_{name}", text, labels=["namespace", "deployment", "reason"])
    for key, count in sorted(counted.items()):
        family.add_metric(list(key), count)
    return family
