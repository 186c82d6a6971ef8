"""What ``report.html`` is made from: the manifest, and what earlier stages left in the work folder.

Only reads. A part that is missing or does not parse is left out: a report never stands in the way of an artifact.
"""

import json
import logging
from pathlib import Path
from typing import Any

from tuneloop_trainer.paths import Paths
from tuneloop_trainer.report import MOST_SAMPLES

log = logging.getLogger("tuneloop")

HISTOGRAMS = {"training": "train_histogram", "validation": "validation_histogram"}


def report_document(
    manifest: dict[str, Any], plan: dict[str, Any], usage: dict[str, Any], paths: Paths, *, with_samples: bool
) -> dict[str, Any]:
    """The document that ``report.report_html`` takes; without samples where the job says so."""
    return {
        "manifest": manifest,
        "plan": plan,
        "usage": usage,
        "histograms": _histograms(paths.work / "check/dataset-report.json"),
        "samples": _samples(paths.work / "train/samples.jsonl") if with_samples else [],
    }


def _histograms(path: Path) -> dict[str, list[list[float]]]:
    """[upper bound in tokens, rows] by side."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = {side: report.get(key) for side, key in HISTOGRAMS.items()}
        return {side: [[float(low), float(rows)] for low, rows in each] for side, each in found.items() if each}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("the report goes without row lengths: %s", error)
        return {}


def _samples(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as stream:
            return [json.loads(line) for line, _ in zip(stream, range(MOST_SAMPLES), strict=False)]
    except (OSError, ValueError) as error:
        log.warning("the report goes without samples: %s", error)
        return []
