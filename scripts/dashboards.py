"""Grafana dashboards from a table of panels: title, unit, and queries with their legends.

Written to ``charts/tuneloop/dashboards`` by ``make generate``; the chart makes ConfigMaps of them.
"""

import json
from typing import Any, NamedTuple

HERE = 'namespace=~"$namespace", deployment=~"$deployment"'
OWNER, NAMED = "namespace, deployment", "{{namespace}}/{{deployment}}"
VERSION = "namespace, engine_name, revision"
WIDTH, HEIGHT, ACROSS = 8, 8, 3
"""Grafana's grid has 24 columns."""


class Panel(NamedTuple):
    """A graph of one or more queries, each with its legend; units are Grafana's."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def quantile(share: str, histogram: str, by: str, where: str = HERE) -> str:
    """A quantile of a histogram over the dashboard's interval."""
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({histogram}_bucket{{{where}}}[$__rate_interval])))"


def percentiles(histogram: str) -> tuple[tuple[str, str], ...]:
    """p50, p95 and p99 by served name, which is unique in its namespace only."""
    return tuple(
        (quantile(f"0.{share}", histogram, "namespace, model"), f"p{share} {{{{namespace}}}}/{{{{model}}}}")
        for share in ("50", "95", "99")
    )


def share(counter: str, by: str, of: str) -> str:
    """The share of a counter's rate that carries a label, such as ``met="true"``."""
    return f"{rate(counter, by, f'{HERE}, {of}')} / {rate(counter, by)}"


def rate(counter: str, by: str, where: str = HERE) -> str:
    """A rate over the dashboard's interval."""
    return f"sum by ({by}) (rate({counter}{{{where}}}[$__rate_interval]))"


def by_key(counter: str) -> tuple[tuple[str, str], ...]:
    """The rate of a counter by the name of an API key."""
    return ((rate(counter, "namespace, key"), "{{namespace}}/{{key}}"),)


SERVING = (
    Panel("Time to first token", "s", percentiles("gen_ai_server_time_to_first_token_seconds")),
    Panel("Time per output token", "s", percentiles("gen_ai_server_time_per_output_token_seconds")),
    Panel("Inter-token latency", "s", percentiles("tuneloop_gateway_inter_token_latency_seconds")),
    Panel("Whole request", "s", percentiles("gen_ai_server_request_duration_seconds")),
    Panel(
        "Requests that kept spec.slo",
        "percentunit",
        ((share("tuneloop_gateway_slo_requests_total", OWNER, 'met="true"'), NAMED),),
    ),
    Panel(
        "Requests by status, and those that failed",
        "reqps",
        (
            (rate("tuneloop_gateway_requests_total", "code"), "{{code}}"),
            (rate("tuneloop_gateway_failed_requests_total", OWNER), f"failed (5xx, or cut): {NAMED}"),
        ),
    ),
    Panel(
        "Tokens",
        "short",
        ((rate("tuneloop_gateway_tokens_total", "namespace, model, type"), "{{namespace}}/{{model}} {{type}}"),),
    ),
    Panel(
        "Requests under way, and waiting for a replica",
        "short",
        (
            (f"sum by ({OWNER}) (tuneloop_gateway_ongoing_requests{{{HERE}}})", f"{NAMED} under way"),
            (f"sum by ({OWNER}) (tuneloop_gateway_queued_requests{{{HERE}}})", f"{NAMED} waiting"),
        ),
    ),
    Panel(
        "Held requests, by how that ended",
        "reqps",
        ((rate("tuneloop_gateway_held_requests_total", "outcome"), "{{outcome}}"),),
    ),
    Panel(
        "Versions side by side: time to first token, p95",
        "s",
        (
            (
                quantile("0.95", "gen_ai_server_time_to_first_token_seconds", VERSION),
                "{{namespace}}/{{engine_name}} {{revision}}",
            ),
        ),
    ),
    Panel(
        "Versions side by side: share of good feedback",
        "percentunit",
        (
            (
                share("tuneloop_gateway_feedback_total", VERSION, 'score="good"'),
                "{{namespace}}/{{engine_name}} {{revision}}",
            ),
        ),
    ),
    Panel(
        "Replicas that are passed over, and retries",
        "short",
        (
            (f"max by ({OWNER}) (tuneloop_gateway_ejected_endpoints{{{HERE}}})", f"{NAMED} passed over"),
            (rate("tuneloop_gateway_retries_total", f"{OWNER}, reason"), f"{NAMED} {{{{reason}}}}"),
        ),
    ),
    Panel(
        "Refused before a model was found, and replicas' failures",
        "reqps",
        (
            (rate("tuneloop_gateway_rejected_requests_total", "code, reason", ""), "{{code}} {{reason}}"),
            (rate("tuneloop_gateway_upstream_failures_total", "kind", ""), "replica: {{kind}}"),
        ),
    ),
    Panel(
        "Cold start, p50 by phase",
        "s",
        (
            (
                quantile("0.5", "tuneloop_cold_start_seconds", "phase", 'namespace=~"$namespace", name=~"$deployment"'),
                "{{phase}}",
            ),
        ),
    ),
    Panel("Requests by key", "reqps", by_key("tuneloop_gateway_key_requests_total")),
    Panel("Tokens by key", "short", by_key("tuneloop_gateway_key_tokens_total")),
    Panel("Requests over a key's limit", "reqps", by_key("tuneloop_gateway_key_limited_total")),
)

TRAINING_HERE = 'namespace=~"$namespace"'
TRAINING = (
    Panel(
        "FineTuneJobs by state",
        "short",
        ((f'sum by (state) (tuneloop_resources{{kind="FineTuneJob", {TRAINING_HERE}}})', "{{state}}"),),
    ),
    Panel(
        "ModelDeployments by state",
        "short",
        ((f'sum by (state) (tuneloop_resources{{kind="ModelDeployment", {TRAINING_HERE}}})', "{{state}}"),),
    ),
    Panel(
        "Accelerators that train",
        "short",
        ((rate("tuneloop_accelerator_seconds_total", "namespace, queue", TRAINING_HERE), "{{namespace}} {{queue}}"),),
    ),
    Panel(
        "Price of training an hour",
        "short",
        (
            (
                f"3600 * {rate('tuneloop_train_price_total', 'namespace, queue, currency', TRAINING_HERE)}",
                "{{namespace}} {{queue}} {{currency}}",
            ),
        ),
    ),
    Panel(
        "Price of the dearest jobs",
        "short",
        ((f"topk(10, tuneloop_finetunejob_price{{{TRAINING_HERE}}})", "{{namespace}}/{{name}} {{currency}}"),),
    ),
    Panel(
        "Reconciles",
        "ops",
        (("sum by (kind, outcome) (rate(tuneloop_reconcile_total[$__rate_interval]))", "{{kind}} {{outcome}}"),),
    ),
    Panel(
        "Duration of a reconcile, p99",
        "s",
        (
            (
                "histogram_quantile(0.99, sum by (le, kind)"
                " (rate(tuneloop_reconcile_duration_seconds_bucket[$__rate_interval])))",
                "{{kind}}",
            ),
        ),
    ),
    Panel(
        "Writes to the API server",
        "ops",
        (("sum by (kind, verb) (rate(tuneloop_api_writes_total[$__rate_interval]))", "{{kind}} {{verb}}"),),
    ),
    Panel(
        "Errors, and keys that wait",
        "short",
        (
            ("sum by (where) (increase(tuneloop_errors_total[$__rate_interval]))", "errors: {{where}}"),
            ("sum(tuneloop_queue_depth)", "keys that wait"),
        ),
    ),
)


def _target(expression: str, legend: str, number: int) -> dict[str, Any]:
    return {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend}


def _graph(panel: Panel, number: int) -> dict[str, Any]:
    place = {"w": WIDTH, "h": HEIGHT, "x": number % ACROSS * WIDTH, "y": number // ACROSS * HEIGHT}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [_target(*query, number=at) for at, query in enumerate(panel.queries)],
    }


def _choice(name: str, query: str) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "$datasource"}
    many = {"includeAll": True, "multi": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return {"name": name, "type": "query", "datasource": source, "query": query, "refresh": 2, "sort": 1, **many}


def _dashboard(uid: str, title: str, panels: tuple[Panel, ...], *choices: dict[str, Any]) -> dict[str, Any]:
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return {
        "uid": uid,
        "title": title,
        "tags": ["tuneloop"],
        "schemaVersion": 39,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [source, *choices]},
        "panels": [_graph(panel, number) for number, panel in enumerate(panels)],
    }


def files() -> dict[str, str]:
    """The dashboards by file name, as JSON."""
    served = "tuneloop_gateway_queued_requests"
    of_serving = (
        _choice("namespace", f"label_values({served}, namespace)"),
        _choice("deployment", f'label_values({served}{{namespace=~"$namespace"}}, deployment)'),
    )
    of_training = _choice("namespace", "label_values(tuneloop_resources, namespace)")
    made = {
        "serving.json": _dashboard("tuneloop-serving", "Tuneloop: serving", SERVING, *of_serving),
        "training.json": _dashboard("tuneloop-training", "Tuneloop: training and operator", TRAINING, of_training),
    }
    return {name: json.dumps(each, indent=1) + "\n" for name, each in made.items()}
