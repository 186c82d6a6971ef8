"""Prometheus text of everything measured, under OpenTelemetry's GenAI names as Prometheus spells them.

Computed when asked for. Never keeps a number of its own.
"""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tuneloop_gateway.histogram import Histogram
from tuneloop_gateway.measure import Labels, Measures, Series

NAMES = ["namespace", "deployment", "model", "operation", "engine_name", "revision"]
HISTOGRAMS: tuple[tuple[str, str, Callable[[Series], Histogram]], ...] = (
    ("gen_ai_server_time_to_first_token_seconds", "Request received to first output, streams.", lambda s: s.ttft),
    ("gen_ai_server_time_per_output_token_seconds", "(E2E - TTFT) / (n - 1), streams.", lambda s: s.tpot),
    ("gen_ai_server_request_duration_seconds", "Request received to last byte.", lambda s: s.duration),
    ("tuneloop_gateway_inter_token_latency_seconds", "Gaps between events with output, streams.", lambda s: s.itl),
)
GAUGES = {
    "ready": "1 while this gateway takes requests: it has seen the cluster, and does not end.",
    "watch_stale_seconds": "Seconds since the API server was last heard of, of what it does not forbid.",
    "forbidden_watches": "Kinds, a namespace each, that the API server forbids: a namespace or its Role is gone.",
    "ready_endpoints": "Server pods in the routing table.",
    "models": "Names that clients may ask for.",
    "ready_gateways": "Ready gateways, among which limits per key are shared.",
    "client_connections": "Open connections of clients.",
    "buffered_bytes": "Request bodies held in memory.",
}


def _values(labels: Labels) -> list[str]:
    where = [labels.namespace, labels.deployment, labels.model, labels.operation]
    return [*where, labels.engine_name, labels.revision]


class MeasuresCollector(Collector):
    """Turns ``Measures`` and a few gauges into metric families."""

    def __init__(self, measures: Measures, gauges: Callable[[], dict[str, float]]) -> None:
        self._measures = measures
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        """All families."""
        series = sorted(self._measures.series.items(), key=lambda item: _values(item[0]))
        for name, text, pick in HISTOGRAMS:
            family = HistogramMetricFamily(name, text, labels=NAMES)
            for labels, each in series:
                family.add_metric(_values(labels), pick(each).buckets(), pick(each).sum)
            yield family
        yield from self._counters(series)
        for key, value in self._gauges().items():
            yield GaugeMetricFamily(f"tuneloop_gateway_{key}", GAUGES[key], value=value)

    def _counters(self, series: list[tuple[Labels, Series]]) -> Iterable[Metric]:
        requests = CounterMetricFamily("tuneloop_gateway_requests", "Requests that ended.", labels=[*NAMES, "code"])
        text = "Requests that ended with a 5xx, or in an answer that was cut after its first byte (code 200)."
        failed = CounterMetricFamily("tuneloop_gateway_failed_requests", text, labels=NAMES)
        tokens = CounterMetricFamily(
            "tuneloop_gateway_tokens", "Tokens by the server's usage.", labels=[*NAMES, "type"]
        )
        ongoing = GaugeMetricFamily("tuneloop_gateway_ongoing_requests", "Requests under way.", labels=NAMES)
        for labels, each in series:
            for code, count in sorted(each.codes.items()):
                requests.add_metric([*_values(labels), code], count)
            failed.add_metric(_values(labels), each.errors)
            tokens.add_metric([*_values(labels), "prompt"], each.prompt_tokens)
            tokens.add_metric([*_values(labels), "completion"], each.completion_tokens)
            ongoing.add_metric(_values(labels), each.ongoing)
        yield from (requests, failed, tokens, ongoing, self._queued(), self._held(), self._slo(), self._feedback())
        yield from (self._rejected(), self._failures())

    def _queued(self) -> Metric:
        """Of every deployment, 0 too: a series that is absent while all is calm is no number to scale by."""
        text = "Requests held for want of a replica that is ready and has room."
        family = GaugeMetricFamily("tuneloop_gateway_queued_requests", text, labels=NAMES[:2])
        queues = self._measures.queues
        for key in sorted(self._measures.deployments | queues.keys()):
            family.add_metric(list(key), len(queues[key]) if key in queues else 0)
        return family

    def _slo(self) -> Metric:
        """Totals of a deployment, which do not fall when a version of it goes."""
        text = "Requests judged by spec.slo, as status.latency.sloAttainment is."
        family = CounterMetricFamily("tuneloop_gateway_slo_requests", text, labels=[*NAMES[:2], "met"])
        for key, (met, missed) in sorted(self._measures.judged().items()):
            family.add_metric([*key, "true"], met)
            family.add_metric([*key, "false"], missed)
        return family

    def _feedback(self) -> Metric:
        text = "Answers of a version that users scored."
        labels = ["namespace", "deployment", "model", "engine_name", "revision", "score"]
        family = CounterMetricFamily("tuneloop_gateway_feedback", text, labels=labels)
        for version, (good, bad) in sorted(self._measures.scores.items()):
            family.add_metric([*version, "good"], good)
            family.add_metric([*version, "bad"], bad)
        return family

    def _held(self) -> Metric:
        text = "Requests that met no replica with room, by how that ended: released, left, or the error's code."
        family = CounterMetricFamily("tuneloop_gateway_held_requests", text, labels=[*NAMES[:2], "outcome"])
        for (key, outcome), count in sorted(self._measures.held.items()):
            family.add_metric([*key, outcome], count)
        return family

    def _rejected(self) -> Metric:
        text = "Requests refused before they had a route."
        family = CounterMetricFamily("tuneloop_gateway_rejected_requests", text, labels=["code", "reason"])
        for key, count in sorted(self._measures.rejected.items()):
            family.add_metric(list(key), count)
        return family

    def _failures(self) -> Metric:
        text = "Server pods that failed a request: connect, broken, silent, refused."
        family = CounterMetricFamily("tuneloop_gateway_upstream_failures", text, labels=["kind"])
        for kind, count in sorted(self._measures.upstream_failures.items()):
            family.add_metric([kind], count)
        return family


def registry(
    measures: Measures, gauges: Callable[[], dict[str, float]], more: Iterable[Collector] = ()
) -> CollectorRegistry:
    """A registry of this process's own, so that nothing else's metrics slip in."""
    found = CollectorRegistry()
    for collector in (MeasuresCollector(measures, gauges), *more):
        found.register(collector)
    ProcessCollector(registry=found)
    PlatformCollector(registry=found)
    return found
