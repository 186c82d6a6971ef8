"""Latency of the last window, from cumulative histograms of several gateways. Pure.

Quantiles interpolate linearly within a bucket, as Prometheus' ``histogram_quantile`` does; above the last finite bound
they are that bound.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tuneloop_core.api.formats import format_latency, parse_duration
from tuneloop_core.api.modeldeployment_status import LatencyStatus, ModelLatency, Percentiles
from tuneloop_core.serving import DeploymentLoad, Histogram, ModelLoad
from tuneloop_operator.policy.conditions import timestamp
from tuneloop_operator.policy.wishes import Felt

HISTOGRAMS = ("ttft", "tpot", "itl", "e2e")
QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
MODELS_KEPT = 32
MOVED_BY = 0.1

Loads = Mapping[str, DeploymentLoad]  # by gateway instance
Counts = Mapping[str, DeploymentLoad] | Mapping[str, ModelLoad]


def difference(before: Histogram | None, after: Histogram | None) -> Histogram | None:
    """Observations between two snapshots of one gateway; a restart (counts went down) begins at zero."""
    if after is None:
        return None
    restarted = before is None or before.bounds != after.bounds or any(map(int.__gt__, before.counts, after.counts))
    if restarted or before is None:
        return after
    counts = [late - early for early, late in zip(before.counts, after.counts, strict=True)]
    return Histogram(bounds=after.bounds, counts=counts, sum=after.sum - before.sum)


def merged(parts: Sequence[Histogram | None]) -> Histogram | None:
    """The sum over gateways; those with other bounds than the first are left out."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    same = [part for part in known if part.bounds == known[0].bounds]
    counts = [sum(column) for column in zip(*(part.counts for part in same), strict=True)]
    return Histogram(bounds=known[0].bounds, counts=counts, sum=sum(part.sum for part in same))


def quantile(share: float, histogram: Histogram) -> float | None:
    """Seconds below which ``share`` of the observations lie; None without any."""
    total = histogram.counts[-1] if histogram.counts else 0
    if total <= 0:
        return None
    rank, low, below = share * total, 0.0, 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        if count >= rank:
            inside = count - below
            return low + (bound - low) * ((rank - below) / inside if inside else 1.0)
        low, below = bound, count
    return histogram.bounds[-1] if histogram.bounds else None


def window(before: Loads, after: Loads, seconds: float, now: datetime) -> LatencyStatus | None:
    """The window between two snapshots; None when no request ended in it."""
    requests = _sum(before, after, "requests")
    if requests <= 0 or seconds <= 0:
        return None
    return LatencyStatus(
        window_seconds=round(seconds),
        requests=requests,
        requests_per_minute=round(60 * requests / seconds, 1),
        tokens_per_second=round(_sum(before, after, "completion_tokens") / seconds, 1),
        updated_time=timestamp(now),
        models=_by_model(before, after),
        **_felt(before, after),
    )


def _by_model(before: Loads, after: Loads) -> list[ModelLatency]:
    """Names with requests, those with the most first; versions of one name count together."""
    early, late = _versions(before), _versions(after)
    found = []
    for name, loads in late.items():
        requests = _sum(early.get(name, {}), loads, "requests")
        if requests > 0:
            found.append(ModelLatency(name=name, requests=requests, **_felt(early.get(name, {}), loads)))
    return sorted(found, key=lambda each: (-each.requests, each.name))[:MODELS_KEPT]


def _versions(loads: Loads) -> dict[str, dict[str, ModelLoad]]:
    """By name, then by gateway and version."""
    found: dict[str, dict[str, ModelLoad]] = {}
    for instance, load in loads.items():
        for each in load.models:
            found.setdefault(each.name, {})[f"{instance}/{each.engine_name}/{each.revision}"] = each
    return found


def _felt(before: Counts, after: Counts) -> dict[str, Any]:
    """Percentiles and SLO attainment, as fields of ``Percentiles``."""
    fields: dict[str, Any] = {}
    for kind in HISTOGRAMS:
        parts = [difference(getattr(before.get(name), kind, None), getattr(load, kind)) for name, load in after.items()]
        total = merged(parts)
        for label, share in QUANTILES.items():
            value = quantile(share, total) if total else None
            fields[f"{kind}_{label}"] = format_latency(value) if value is not None else None
    met, missed = _sum(before, after, "slo_met"), _sum(before, after, "slo_missed")
    return fields | {"slo_attainment": round(met / (met + missed), 4) if met + missed else None}


def of_revision(loads: Loads, serving: str) -> Counts:
    """What was measured of the revision that serves (rN) alone; all there is where none is said to.

    The gateways name the revision of a canary's answers, and leave it out of all others.
    """
    if not serving:
        return loads
    return {
        f"{instance}/{each.name}/{each.engine_name}/{each.revision}": each
        for instance, load in loads.items()
        for each in load.models
        if each.revision in ("", serving)
    }


def felt(before: Counts, after: Counts) -> Felt:
    """What users felt between two snapshots, for the autoscaler."""

    def p95(kind: str) -> float | None:
        parts = [difference(getattr(before.get(name), kind, None), getattr(load, kind)) for name, load in after.items()]
        total = merged(parts)
        return quantile(QUANTILES["p95"], total) if total else None

    return Felt(_sum(before, after, "requests"), p95("ttft"), p95("tpot"))


def _sum(before: Counts, after: Counts, field: str) -> int:
    return sum(_count(before.get(name), load, field) for name, load in after.items())


def _count(before: DeploymentLoad | ModelLoad | None, after: DeploymentLoad | ModelLoad, field: str) -> int:
    late, early = int(getattr(after, field)), int(getattr(before, field, 0))
    return late - early if late >= early else late


def moved(old: LatencyStatus | None, new: LatencyStatus) -> bool:
    """Whether anything moved by a tenth, in all or of one name, so that it is worth a write."""
    if old is None or {each.name for each in old.models} != {each.name for each in new.models}:
        return True
    before = {each.name: each for each in old.models}
    pairs = [pair for each in new.models for pair in _pairs(before[each.name], each)]
    pairs += _pairs(old, new)
    pairs.append((old.requests_per_minute, new.requests_per_minute))
    pairs.append((old.tokens_per_second, new.tokens_per_second))
    return any(abs(late - early) > MOVED_BY * max(early, late) for early, late in pairs)


def _pairs(old: Percentiles, new: Percentiles) -> list[tuple[float, float]]:
    """What users felt, before and now."""
    names = [f"{kind}_{label}" for kind in HISTOGRAMS for label in QUANTILES]
    pairs = [(_seconds(getattr(old, name)), _seconds(getattr(new, name))) for name in names]
    return [*pairs, (old.slo_attainment or 0.0, new.slo_attainment or 0.0)]


def _seconds(text: str | None) -> float:
    return parse_duration(text) if text else 0.0
