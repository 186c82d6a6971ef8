"""One measured request, and what many of them say together. Pure.

Definitions as in docs/latency.md: TTFT to the first event with output; ITL each gap between events with output; TPOT
(time of the last output − TTFT) / (output tokens − 1); E2E to the last output. Times are seconds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tuneloop_gateway.bench.slo import Objectives

PERCENTILES = (50, 90, 95, 99)
METRICS = ("ttft", "tpot", "itl", "e2e")


@dataclass(frozen=True)
class Sample:
    """One request. ``planned`` and ``sent`` are seconds after the run's start; ``error`` is empty when it succeeded."""

    planned: float
    sent: float
    ttft: float = 0.0
    tpot: float | None = None  # None for a single output token
    itl: tuple[float, ...] = ()
    e2e: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""

    @property
    def lag(self) -> float:
        """How much later than planned it was sent: the generator's own fault, not the server's."""
        return max(0.0, self.sent - self.planned)

    def meets(self, slo: Objectives) -> bool:
        """Whether it succeeded within every objective; a request without TPOT meets any TPOT."""
        if self.error:
            return False
        measured = {"ttft": self.ttft, "tpot": self.tpot or 0.0, "e2e": self.e2e}
        return all(measured[name] <= limit for name, limit in slo.items())


@dataclass(frozen=True)
class Distribution:
    """Mean and percentiles of one metric, seconds; ``count`` observations."""

    count: int
    mean: float
    percentiles: dict[int, float]


@dataclass(frozen=True)
class Summary:
    """What a run found. Rates are per second of ``seconds``, first request sent to last answer's end."""

    requests: int
    succeeded: int
    seconds: float
    request_rate: float  # answered requests
    output_token_rate: float
    prompt_tokens: int
    output_tokens: int
    metrics: dict[str, Distribution]
    lag_p99: float
    errors: dict[str, int] = field(default_factory=dict)
    slo_attainment: float | None = None  # share of all requests, failed ones included, that met the objectives
    goodput: float | None = None  # requests that met them, per second


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0..1) of the sorted values lie, interpolated linearly as numpy does."""
    if not ordered:
        raise ValueError("no values, so no percentile")
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def distribution(values: Sequence[float]) -> Distribution:
    """Mean and percentiles; zeros when there is nothing."""
    ordered = sorted(values)
    if not ordered:
        return Distribution(0, 0.0, dict.fromkeys(PERCENTILES, 0.0))
    found = {each: percentile(ordered, each / 100) for each in PERCENTILES}
    return Distribution(len(ordered), sum(ordered) / len(ordered), found)


def summarise(samples: Sequence[Sample], slo: Objectives) -> Summary:
    """All samples of one run together; raises ValueError when there are none."""
    if not samples:
        raise ValueError("no request was measured")
    good = [sample for sample in samples if not sample.error]
    seconds = max(sample.sent + sample.e2e for sample in samples) - min(sample.sent for sample in samples)
    per_second = 1 / seconds if seconds > 0 else 0.0
    met = sum(sample.meets(slo) for sample in samples)
    return Summary(
        requests=len(samples),
        succeeded=len(good),
        seconds=seconds,
        request_rate=len(good) * per_second,
        output_token_rate=sum(sample.output_tokens for sample in good) * per_second,
        prompt_tokens=sum(sample.prompt_tokens for sample in good),
        output_tokens=sum(sample.output_tokens for sample in good),
        metrics=_metrics(good),
        lag_p99=percentile(sorted(sample.lag for sample in samples), 0.99),
        errors=dict(Counter(sample.error for sample in samples if sample.error)),
        slo_attainment=met / len(samples) if slo else None,
        goodput=met * per_second if slo else None,
    )


def _metrics(good: Sequence[Sample]) -> dict[str, Distribution]:
    return {
        "ttft": distribution([sample.ttft for sample in good]),
        "tpot": distribution([sample.tpot for sample in good if sample.tpot is not None]),
        "itl": distribution([gap for sample in good for gap in sample.itl]),
        "e2e": distribution([sample.e2e for sample in good]),
    }
