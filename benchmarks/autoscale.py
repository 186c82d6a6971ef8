"""Plays every load trace through the autoscaler's decision, prints a table, writes JSON and a plot.

    .venv/bin/python benchmarks/autoscale.py [--out FOLDER] [--plot FILE.png]

What it shows is the decision, on replicas that start in 60 s; no cluster and no model take part.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from autoscale_parts.simulator import Row, changes, simulate
from autoscale_parts.traces import TRACES

from tuneloop_core.api.scaling import Scaling, ScalingTarget, ServiceLevel

SCALING = Scaling(min_replicas=0, max_replicas=8, target=ScalingTarget(ongoing_requests=12), scale_down_delay="5m")
SLO = ServiceLevel(ttft_p95="2s")


def summary(rows: list[Row]) -> dict[str, float]:
    """The numbers by which a scaler is judged."""
    return {
        "changes": len(changes(rows)),
        "replica_minutes": round(sum(row.wanted for row in rows) / 60, 1),
        "most_replicas": max(row.wanted for row in rows),
        "most_held": max(row.held for row in rows),
        "waiting_mean": round(sum(row.waiting for row in rows) / len(rows), 2),
        "last_replicas": rows[-1].wanted,
    }


def plot(runs: dict[str, list[Row]], path: Path) -> None:
    """One panel a trace: load as an area, replicas wanted and ready as steps."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    drawn = Figure(figsize=(12, 12), layout="constrained")
    for axes, (name, rows) in zip(drawn.subplots(3, 2).flat, runs.items(), strict=True):
        minutes = [row.second / 60 for row in rows]
        axes.fill_between(minutes, [row.load for row in rows], color="#bcd4e6", label="requests in progress or held")
        axes.set(title=name, xlabel="minutes", ylabel="requests")
        right = axes.twinx()
        right.step(minutes, [row.wanted for row in rows], where="post", color="#c0392b", label="replicas wanted")
        right.step(minutes, [row.ready for row in rows], where="post", color="#2c3e50", ls=":", label="replicas ready")
        right.set(ylabel="replicas", ylim=(0, SCALING.max_replicas or 1))
        if name == "step":
            axes.legend(loc="upper left", fontsize="small")
            right.legend(loc="upper right", fontsize="small")
    drawn.savefig(path, dpi=80)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for autoscale.json")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    options = parser.parse_args()
    runs = {name: simulate(trace, SCALING, SLO) for name, trace in TRACES.items()}
    table = {name: summary(rows) for name, rows in runs.items()}
    print(f"{'trace':<10}" + "".join(f"{column:>17}" for column in next(iter(table.values()))))
    for name, numbers in table.items():
        print(f"{name:<10}" + "".join(f"{value:>17}" for value in numbers.values()))
        for row in changes(runs[name]):
            print(f"    {row.second:>5} s  {row.wanted} replicas: {row.reason}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        moves = {name: [asdict(row) for row in changes(rows)] for name, rows in runs.items()}
        (options.out / "autoscale.json").write_text(json.dumps({"summary": table, "changes": moves}, indent=2))
    if options.plot:
        plot(runs, options.plot)


if __name__ == "__main__":
    main()
