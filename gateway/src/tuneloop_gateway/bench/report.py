"""A run in words and as JSON. Pure."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tuneloop_core.api.formats import format_latency
from tuneloop_gateway.bench.samples import METRICS, PERCENTILES, Sample, Summary
from tuneloop_gateway.bench.slo import Objectives
from tuneloop_gateway.bench.sweep import Trial, best

NAMES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2e": "end to end",
}
LATE_SECONDS = 0.05  # a generator that sends later than this is itself too slow


def table(summary: Summary, slo: Objectives) -> str:
    """The run as people read it."""
    lines = [
        f"{summary.succeeded} of {summary.requests} requests succeeded in {summary.seconds:.1f} s: "
        f"{summary.request_rate:.2f} requests/s, {summary.output_token_rate:.1f} output tokens/s",
        *(f"  {count} x {error}" for error, count in sorted(summary.errors.items())),
        "",
        f"{'':<24}{'mean':>10}" + "".join(f"{f'p{each}':>10}" for each in PERCENTILES),
    ]
    lines += [_row(NAMES[name], summary, name) for name in METRICS]
    if summary.slo_attainment is not None and summary.goodput is not None:
        asked = ", ".join(f"{name} {format_latency(limit)}" for name, limit in slo.items())
        lines += ["", f"goodput {summary.goodput:.2f} requests/s: {summary.slo_attainment:.1%} met {asked}"]
    if summary.lag_p99 > LATE_SECONDS:
        lines += ["", f"Requests were sent up to {format_latency(summary.lag_p99)} late (p99): {_late()}"]
    return "\n".join(lines)


def _late() -> str:
    return "this generator or --concurrency held them back, so the rate was not what was asked for"


def _row(label: str, summary: Summary, name: str) -> str:
    found = summary.metrics[name]
    values = [found.mean, *(found.percentiles[each] for each in PERCENTILES)]
    return f"{label:<24}" + "".join(f"{format_latency(value) if found.count else '-':>10}" for value in values)


def sweep_table(runs: Sequence[tuple[Trial, Summary]]) -> str:
    """One row a rate, in the order of the rates, and the highest that held."""
    lines = [f"{'requests/s':>11}{'met':>9}{'goodput':>10}{'TTFT p95':>11}{'TPOT p95':>11}{'tokens/s':>10}"]
    for trial, summary in sorted(runs, key=lambda pair: pair[0].rate):
        share = f"{summary.slo_attainment or 0:.1%}"
        ttft, tpot = (format_latency(summary.metrics[name].percentiles[95]) for name in ("ttft", "tpot"))
        row = f"{trial.rate:>11.2f}{share:>9}{summary.goodput or 0:>10.2f}{ttft:>11}{tpot:>11}"
        lines.append(f"{row}{summary.output_token_rate:>10.1f}{'' if trial.met else '  missed'}")
    found = best([trial for trial, _ in runs])
    lines += ["", f"highest rate within the objectives: {found:.2f} requests/s" if found else "no rate met them"]
    return "\n".join(lines)


def document(settings: dict[str, Any], summary: Summary, samples: Sequence[Sample]) -> dict[str, Any]:
    """One run as JSON: settings (without the key), summary, and every request in the order of the plan."""
    return {"settings": settings, "summary": asdict(summary), "requests": [asdict(sample) for sample in samples]}


def sweep_document(settings: dict[str, Any], runs: Sequence[tuple[Trial, Summary]]) -> dict[str, Any]:
    """A sweep as JSON; ``rate`` is null when no rate met the objectives."""
    tried = [{"rate": trial.rate, "met": trial.met, "summary": asdict(summary)} for trial, summary in runs]
    return {"settings": settings, "rate": best([trial for trial, _ in runs]), "runs": tried}
