"""Draws a run (how many requests were how fast) or a sweep (latency over rate), as PNG, SVG or a page of HTML.

Needs matplotlib, which the gateway itself does not: ``pip install 'tuneloop-gateway[plot]'``.
"""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneloop_gateway.bench.report import NAMES
from tuneloop_gateway.bench.samples import METRICS, Sample, Summary
from tuneloop_gateway.bench.slo import Objectives
from tuneloop_gateway.bench.sweep import Trial, best

SUFFIXES = {".png", ".svg", ".html"}
MISSING = "plots need matplotlib: pip install 'tuneloop-gateway[plot]'"


def figure() -> Any:
    """An empty figure; raises ValueError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise ValueError(MISSING) from error
    return Figure(figsize=(11, 7), layout="constrained")


def draw_run(samples: Sequence[Sample], slo: Objectives) -> Any:
    """Four panels: the share of requests (or gaps) that took at most so long, with the objectives as lines."""
    drawn = figure()
    good = [sample for sample in samples if not sample.error]
    values = {
        "ttft": [sample.ttft for sample in good],
        "tpot": [sample.tpot for sample in good if sample.tpot is not None],
        "itl": [gap for sample in good for gap in sample.itl],
        "e2e": [sample.e2e for sample in good],
    }
    for panel, name in zip(drawn.subplots(2, 2).flat, METRICS, strict=True):
        ordered = sorted(value * 1000 for value in values[name])
        if ordered:
            panel.plot(ordered, [(rank + 1) / len(ordered) for rank in range(len(ordered))], drawstyle="steps-post")
        if name in slo:
            panel.axvline(slo[name] * 1000, color="tab:red", linestyle="--", label="objective")
            panel.legend()
        panel.set(title=NAMES[name], xlabel="milliseconds", ylabel="share at most so long", ylim=(0, 1.02))
        panel.grid(alpha=0.3)
    return drawn


def draw_sweep(runs: Sequence[tuple[Trial, Summary]], slo: Objectives) -> Any:
    """Three panels over the rate: TTFT and TPOT at p50 and p95, and the share that met the objectives."""
    drawn = figure()
    panels = drawn.subplots(3, 1, sharex=True)
    ordered = sorted(runs, key=lambda pair: pair[0].rate)
    rates = [trial.rate for trial, _ in ordered]
    for panel, name in zip(panels, ("ttft", "tpot"), strict=False):
        for share in (50, 95):
            found = [summary.metrics[name].percentiles[share] * 1000 for _, summary in ordered]
            panel.plot(rates, found, marker="o", label=f"p{share}")
        if name in slo:
            panel.axhline(slo[name] * 1000, color="tab:red", linestyle="--", label="objective")
        panel.set(title=NAMES[name], ylabel="milliseconds")
        panel.legend()
    panels[2].plot(rates, [(summary.slo_attainment or 0) * 100 for _, summary in ordered], marker="o")
    panels[2].set(title="requests that met the objectives", ylabel="%", xlabel="requests per second", ylim=(0, 102))
    held = best([trial for trial, _ in runs])
    for panel in panels:
        panel.grid(alpha=0.3)
        if held:
            panel.axvline(held, color="tab:green", linestyle=":")
    return drawn


def write(drawn: Any, path: Path, title: str, words: str) -> None:
    """Write the figure; as HTML it is one page with ``words`` below, without script or anything from elsewhere."""
    if path.suffix != ".html":
        drawn.savefig(path, dpi=150)
        return
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg")
    picture = buffer.getvalue()
    picture = picture[picture.index("<svg") :]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
    style = "<style>body{font-family:sans-serif;margin:2em}svg{max-width:100%;height:auto}</style>"
    path.write_text(f"{head}{style}<h1>{html.escape(title)}</h1>{picture}<pre>{html.escape(words)}</pre></html>\n")
