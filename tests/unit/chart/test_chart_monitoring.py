"""Alerts and dashboards ask for metrics and labels that operator and gateway really have."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import promql_parser
import pytest
import yaml
from chart_render import CHART, of_kind, template
from chart_render import objects as rendered
from prometheus_client.registry import Collector, CollectorRegistry

from tuneloop_gateway.accesslog import AccessLog
from tuneloop_gateway.exposition import GAUGES, registry
from tuneloop_gateway.measure import Measures
from tuneloop_gateway.upstream_metrics import UpstreamCollector
from tuneloop_gateway.usage import UsageCollector
from tuneloop_operator import metrics
from tuneloop_operator.reconcile.cache import Cache
from tuneloop_operator.reconcile.census import Census
from tuneloop_operator.reconcile.heartbeat import FROZEN_AFTER_SECONDS

ALERTS = yaml.safe_load((CHART / "alerts.yaml").read_text())["groups"]
DOCS = CHART.parents[1] / "docs"
RULES = [rule for group in ALERTS for rule in group["rules"]]
DASHBOARDS = {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
QUERIES = [
    (f"{name}: {panel['title']}", target["expr"], target["legendFormat"])
    for name, board in sorted(DASHBOARDS.items())
    for panel in board["panels"]
    for target in panel["targets"]
]
BY_NAME = {rule["alert"]: rule for rule in RULES}
UNIQUE_IN_NAMESPACE = {"deployment", "model", "engine_name", "key", "queue"}
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
PARTS = ("_count", "_sum")  # of histograms, whose buckets are asked for
FOR_DEBUGGING = {
    "tuneloop_api_reads_total",
    "tuneloop_finetunejob_accelerator_seconds",
    "tuneloop_gateway_access_log_dropped_lines_total",
    "tuneloop_gateway_buffered_bytes",
    "tuneloop_gateway_client_connections",
    "tuneloop_gateway_ejections_total",
    "tuneloop_gateway_models",
    "tuneloop_gateway_ready_endpoints",
    "tuneloop_gateway_ready_gateways",
    "tuneloop_lease_renewals_total",
    "tuneloop_polls_total",
}
LONGEST_BACK_OFF = 300  # seconds that the kubelet lets a container wait that ends again and again
ADDED = {"le", "instance"}  # by the histogram, and by Prometheus


def gateway() -> CollectorRegistry:
    forwarder: Any = SimpleNamespace(ejected=dict, ejections={}, retries={})
    more: list[Collector] = [UpstreamCollector(forwarder), UsageCollector(), AccessLog(enabled=False)]
    return registry(Measures("gateway", 0.0), lambda: dict.fromkeys(GAUGES, 0.0), more)


def families() -> dict[str, set[str]]:
    """Label names by series name."""
    made = CollectorRegistry()
    made.register(Census(Cache()))
    found = [family for each in (gateway(), made) for family in each.collect()]
    found += [each for each in vars(metrics).values() if hasattr(each, "_labelnames")]
    series: dict[str, set[str]] = {}
    for family in found:
        kind, name = getattr(family, "_type", None) or family.type, getattr(family, "_name", None) or family.name
        for suffix in SUFFIXES.get(kind, []):
            series[name + suffix] = set(getattr(family, "_labelnames", ()))
    return series


SERIES = families()


def walk(node: Any) -> Iterator[Any]:
    yield node
    parts = (getattr(node, each, None) for each in ("lhs", "rhs", "expr", "vector_selector"))
    for child in (*(part for part in parts if part is not None), *getattr(node, "args", ())):
        yield from walk(child)


def check(expression: str, used: Iterable[str] = ()) -> set[str]:
    """The labels of the result; fails where a series or a label is nobody's. ``used`` are labels that words show."""
    tree = promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    names, asked = set(), set(used)
    for node in walk(tree):
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name)
            asked |= {matcher.name for matcher in node.matchers.matchers}
        modifier = getattr(node, "modifier", None)
        matching = getattr(modifier, "matching", None) or modifier
        asked |= set(getattr(matching, "labels", None) or ())
    assert names, "asks for no series"
    assert names <= SERIES.keys(), f"no such series: {names - SERIES.keys()}"
    labels = set.union(*(SERIES[name] for name in names)) | ADDED
    assert asked <= labels, f"no such labels: {asked - labels}"
    return labels


def words_labels(text: str) -> set[str]:
    return set(re.findall(r"\$labels\.(\w+)", text))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts(rule: dict[str, Any]) -> None:
    words = " ".join(rule["annotations"].values())
    check(rule["expr"], words_labels(words))
    shown = words_labels(words)
    kept = set(re.findall(r"by \(([^)]*)\)", rule["expr"])[-1].split(", ")) if shown else set()
    assert shown <= kept, "only what the result is grouped by can be told"
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description"}


@pytest.mark.parametrize(("panel", "expression", "legend"), QUERIES, ids=[query[0] for query in QUERIES])
def test_dashboards(panel: str, expression: str, legend: str) -> None:
    check(expression, set(re.findall(r"{{(\w+)}}", legend)))


@pytest.mark.parametrize(("panel", "expression", "legend"), QUERIES, ids=[query[0] for query in QUERIES])
def test_names_of_two_teams_are_two_lines(panel: str, expression: str, legend: str) -> None:
    for group in re.findall(r"by \(([^)]*)\)", expression):
        if UNIQUE_IN_NAMESPACE & set(group.split(", ")):
            assert "namespace" in group.split(", ")
            assert "{{namespace}}" in legend


def seconds(duration: str) -> int:
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def test_frozen_watches_are_seen_before_liveness_ends_the_process() -> None:
    """Its age begins at 0 again with each process, so the alert looks at peaks, and how long they come again."""
    values = "monitoring: {podMonitors: {enabled: true}}"
    (operator,) = (each for each in of_kind(rendered(values), "Deployment") if "operator" in each["metadata"]["name"])
    pod = operator["spec"]["template"]["spec"]
    liveness = pod["containers"][0]["livenessProbe"]
    interval = of_kind(rendered(values), "PodMonitor")[0]["spec"]["podMetricsEndpoints"][0]["interval"]
    expression, least = BY_NAME["TuneloopOperatorBlind"]["expr"], BY_NAME["TuneloopOperatorBlind"]["for"]
    (window,) = re.findall(r"max_over_time\(tuneloop_watch_age_seconds\[(\w+)\]\)", expression)
    assert float(expression.split("> ")[1]) == FROZEN_AFTER_SECONDS
    shown = liveness["periodSeconds"] * (liveness["failureThreshold"] - 1)
    assert seconds(interval) < shown, "at least one scrape sees an age over the threshold"
    ends_at = FROZEN_AFTER_SECONDS + shown + liveness["periodSeconds"] + pod["terminationGracePeriodSeconds"]
    assert ends_at + LONGEST_BACK_OFF < seconds(window) < seconds(least), "the next peak comes in time; one is no alert"


def test_failures_are_what_the_gateway_calls_so_cut_streams_included() -> None:
    expression = BY_NAME["TuneloopRequestsFail"]["expr"]
    assert "rate(tuneloop_gateway_failed_requests_total[10m])" in expression.split(" / ")[0]


def test_requests_that_wait_are_summed_before_their_least_is_taken() -> None:
    """Held now by one gateway, now by another: each for itself says 0 in between."""
    tree = promql_parser.parse(BY_NAME["TuneloopRequestsWait"]["expr"]).lhs
    assert (tree.func.name, type(tree.args[0].expr)) == ("min_over_time", promql_parser.AggregateExpr)


def test_a_gateway_that_runs_and_is_not_ready_is_no_gateway() -> None:
    assert BY_NAME["TuneloopGatewayAbsent"]["expr"] == "absent(tuneloop_gateway_ready == 1)"


@pytest.mark.parametrize("page", sorted(DOCS.glob("**/*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_pages_name_metrics_that_there_are(page: Path) -> None:
    known = SERIES.keys() | {name.removesuffix("_bucket") for name in SERIES}
    assert set(re.findall(r"\b(?:gen_ai|tuneloop_gateway)_\w+", page.read_text())) <= known


def test_a_wrong_name_is_found() -> None:
    with pytest.raises(AssertionError, match="no such series"):
        check("rate(tuneloop_gateway_request_total[5m])")
    with pytest.raises(AssertionError, match="no such labels"):
        check("sum by (team) (rate(tuneloop_gateway_requests_total[5m]))")


def test_every_metric_of_ours_is_shown_or_watched() -> None:
    asked = " ".join([query[1] for query in QUERIES] + [rule["expr"] for rule in RULES])
    ours = {name for name in SERIES if name.startswith(("tuneloop_", "gen_ai_")) and not name.endswith(PARTS)}
    assert {name for name in ours if name not in asked} == FOR_DEBUGGING


def test_the_chart_carries_them_whole() -> None:
    values = "monitoring: {podMonitors: {enabled: true}, alerts: {enabled: true}, dashboards: {enabled: true}}"
    found = rendered(values)
    (rule,) = of_kind(found, "PrometheusRule")
    assert rule["spec"]["groups"] == ALERTS
    assert rule["metadata"]["labels"]["app.kubernetes.io/part-of"] == "tuneloop"
    boards = [each for each in of_kind(found, "ConfigMap") if "grafana_dashboard" in each["metadata"]["labels"]]
    assert {name: json.loads(text) for each in boards for name, text in each["data"].items()} == {
        f"tuneloop-{name}": board for name, board in DASHBOARDS.items()
    }
    ports = {
        container_port["name"]
        for each in of_kind(found, "Deployment")
        for container in each["spec"]["template"]["spec"]["containers"]
        for container_port in container["ports"]
    }
    monitors = of_kind(found, "PodMonitor")
    assert len(monitors) == 2
    assert {each["spec"]["podMetricsEndpoints"][0]["port"] for each in monitors} <= ports


def test_nothing_of_it_is_there_by_default() -> None:
    assert not of_kind(rendered(), "PodMonitor", "PrometheusRule")
    done = template("monitoring: {podMonitors: {interval: fast}}")
    assert done.returncode != 0
    assert "/monitoring/podMonitors/interval" in done.stderr
