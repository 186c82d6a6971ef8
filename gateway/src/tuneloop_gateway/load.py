"""``GatewayLoad``: what was measured, as the operator asks for it at ``/internal/load``.

Computed when asked for, and never keeps a number of its own. Totals of a deployment never fall while it lives: what
names and versions counted that are gone stays in them.
"""

import time
from collections.abc import Sequence
from typing import Any

from tuneloop_core import serving
from tuneloop_core.serving import DeploymentLoad, GatewayLoad, ModelLoad
from tuneloop_gateway.histogram import Histogram
from tuneloop_gateway.measure import DeploymentKey, Labels, Measures, Series

Group = list[tuple[Labels, Series]]


def gateway_load(measures: Measures) -> GatewayLoad:
    """One entry a deployment, all its models together and each by itself."""
    groups: dict[DeploymentKey, Group] = {deployment: [] for deployment in (*measures.past, *measures.queues)}
    for labels, series in measures.series.items():
        groups.setdefault((labels.namespace, labels.deployment), []).append((labels, series))
    deployments = [_deployment(measures, *key, group) for key, group in sorted(groups.items())]
    return GatewayLoad(instance=measures.instance, started=measures.started, deployments=deployments)


def _deployment(measures: Measures, namespace: str, name: str, group: Group) -> DeploymentLoad:
    past, queue = measures.past.get((namespace, name)), measures.queues.get((namespace, name))
    every = [series for _, series in group] + ([past] if past is not None else [])
    return DeploymentLoad(
        namespace=namespace,
        name=name,
        ongoing=sum(series.ongoing for series in every),
        queued=len(queue) if queue is not None else 0,
        unserved_seconds=round(queue.waited(time.monotonic()), 1) if queue is not None else 0.0,
        prompt_tokens=sum(series.prompt_tokens for series in every),
        models=_models(measures, (namespace, name), group),
        **_totals(every),
    )


def _models(measures: Measures, deployment: tuple[str, str], group: Group) -> list[ModelLoad]:
    """One entry a (name, engine name, revision): chat and completions together, and what users thought of it."""
    scores = {version[2:]: counts for version, counts in measures.scores.items() if version[:2] == deployment}
    versions: dict[tuple[str, str, str], list[Series]] = {version: [] for version in scores}
    for labels, series in group:
        versions.setdefault((labels.model, labels.engine_name, labels.revision), []).append(series)
    return [_model(version, found, scores.get(version, [0, 0])) for version, found in sorted(versions.items())]


def _model(version: tuple[str, str, str], found: Sequence[Series], scores: Sequence[int]) -> ModelLoad:
    name, engine_name, revision = version
    group = found or [Series()]  # the answers that were scored came from another gateway
    return ModelLoad(
        name=name,
        engine_name=engine_name,
        revision=revision,
        feedback_good=scores[0],
        feedback_bad=scores[1],
        **_totals(group),
    )


def _totals(group: Sequence[Series]) -> dict[str, Any]:
    """What is told of a deployment and of each of its versions alike."""
    return {
        "requests": sum(sum(series.codes.values()) for series in group),
        "errors": sum(series.errors for series in group),
        "completion_tokens": sum(series.completion_tokens for series in group),
        "ttft": _sum([series.ttft for series in group]),
        "tpot": _sum([series.tpot for series in group]),
        "itl": _sum([series.itl for series in group]),
        "e2e": _sum([series.duration for series in group]),
        "slo_met": sum(series.slo_met for series in group),
        "slo_missed": sum(series.slo_missed for series in group),
    }


def _sum(histograms: Sequence[Histogram]) -> serving.Histogram | None:
    if not histograms:
        return None
    total = Histogram(histograms[0].bounds)
    for histogram in histograms:
        total.add(histogram)
    return total.wire()
