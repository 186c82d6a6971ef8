"""Latency of the last window, from cumulative histograms of several gateways. Pure.

Quantiles interpolate linearly within a bucket, as Prometheus' ``histogram_quantile`` does; above the last finite bound
they are that bound.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from tuneloop_core.api.formats import format_latency, parse_duration
from tuneloop_core.api.modeldeployment_status import LatencyStatus
from tuneloop_core.serving import DeploymentLoad, Histogram
from tuneloop_operator.policy.conditions import timestamp
from tuneloop_operator.policy.wishes import Felt

HISTOGRAMS = ("ttft", "tpot", "itl", "e2e")
QUANTILES = {"p50": 0.50, "p95": 0.95}
MOVED_BY = 0.1

Loads = Mapping[str, DeploymentLoad]  # by gateway instance


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
    requests = sum(_count(before, after, name, "requests") for name in after)
    if requests <= 0 or seconds <= 0:
        return None
    tokens = sum(_count(before, after, name, "completion_tokens") for name in after)
    fields: dict[str, str | None] = {}
    for kind in HISTOGRAMS:
        parts = [difference(getattr(before.get(name), kind, None), getattr(load, kind)) for name, load in after.items()]
        total = merged(parts)
        for label, share in QUANTILES.items():
            value = quantile(share, total) if total else None
            fields[f"{kind}_{label}"] = format_latency(value) if value is not None else None
    return LatencyStatus(
        window_seconds=round(seconds),
        requests=requests,
        requests_per_minute=round(60 * requests / seconds, 1),
        tokens_per_second=round(tokens / seconds, 1),
        updated_time=timestamp(now),
        **fields,
    )


def felt(before: Loads, after: Loads) -> Felt:
    """What users felt between two snapshots, for the autoscaler."""

    def p95(kind: str) -> float | None:
        parts = [difference(getattr(before.get(name), kind, None), getattr(load, kind)) for name, load in after.items()]
        total = merged(parts)
        return quantile(QUANTILES["p95"], total) if total else None

    return Felt(sum(_count(before, after, name, "requests") for name in after), p95("ttft"), p95("tpot"))


def _count(before: Loads, after: Loads, name: str, field: str) -> int:
    late, early = int(getattr(after[name], field)), int(getattr(before.get(name), field, 0))
    return late - early if late >= early else late


def moved(old: LatencyStatus | None, new: LatencyStatus) -> bool:
    """Whether anything moved by a tenth, so that it is worth a write."""
    if old is None:
        return True
    names = [f"{kind}_{label}" for kind in HISTOGRAMS for label in QUANTILES]
    pairs = [(_seconds(getattr(old, name)), _seconds(getattr(new, name))) for name in names]
    pairs.append((old.requests_per_minute, new.requests_per_minute))
    pairs.append((old.tokens_per_second, new.tokens_per_second))
    return any(abs(late - early) > MOVED_BY * max(early, late) for early, late in pairs)


def _seconds(text: str | None) -> float:
    return parse_duration(text) if text else 0.0
