"""A task of the user's own: lm-eval's YAML, taken as data.

lm-eval would run Python that a task names (``!function``, ``class``, metrics by path) and follow includes; here a task
is a closed set of settings, and its templates are rendered in a sandbox. Nothing that was fetched is ever run.
"""

from pathlib import Path
from typing import Any

import yaml
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError

KEYS = frozenset(
    [
        "task",
        "tag",
        "dataset_name",
        "training_split",
        "validation_split",
        "test_split",
        "fewshot_split",
        "doc_to_text",
        "doc_to_target",
        "doc_to_choice",
        "description",
        "target_delimiter",
        "fewshot_delimiter",
        "gen_prefix",
        "num_fewshot",
        "output_type",
        "metric_list",
        "generation_kwargs",
        "filter_list",
        "repeats",
        "should_decontaminate",
        "doc_to_decontamination_query",
        "metadata",
    ]
)
METRIC_KEYS = frozenset(
    [
        "metric",
        "aggregation",
        "higher_is_better",
        "ignore_case",
        "ignore_punctuation",
        "ignore_numbers",
        "regexes_to_ignore",
    ]
)
OUTPUT_TYPES = ("multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling")


def file_of(folder: Path, name: str) -> Path | None:
    """The file that makes a source bring its own task; None where it only has rows."""
    path = folder / f"{name}.yaml"
    return path if path.is_file() else None


def read_task(path: Path, name: str) -> dict[str, Any]:
    """The settings of a task; raises ``DatasetInvalid`` with what is not taken and what would be."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        code = " It may hold no code (!function)." if "!function" in str(error) else ""
        raise _refusal(name, f"does not parse: {' '.join(str(error).split())}.{code}") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise _refusal(name, "is not a mapping of lm-eval's settings.")
    _require_known(config, name)
    return config | {"task": name}


def _require_known(config: dict[str, Any], name: str) -> None:
    unknown = sorted(set(config) - KEYS - {"dataset_path"})
    if unknown:
        raise _refusal(name, f"has {', '.join(unknown)}, which is not taken; what is: {', '.join(sorted(KEYS))}.")
    if config.get("output_type") not in OUTPUT_TYPES:
        raise _refusal(name, f"has output_type {config.get('output_type')}; it is one of {', '.join(OUTPUT_TYPES)}.")
    metrics = config.get("metric_list", [])
    if not isinstance(metrics, list):
        raise _refusal(name, f"needs a list as metric_list, not {metrics}.")
    for metric in metrics:
        _require_metric(metric, name)


def _require_metric(metric: Any, name: str) -> None:
    from lm_eval.api import metrics as _  # noqa: F401, PLC0415 - fills the registry
    from lm_eval.api.registry import aggregation_registry, metric_registry  # noqa: PLC0415

    if not isinstance(metric, dict) or "metric" not in metric or set(metric) - METRIC_KEYS:
        raise _refusal(name, f"needs a metric_list whose entries have {', '.join(sorted(METRIC_KEYS))}, not {metric}.")
    if metric["metric"] not in metric_registry:
        known = ", ".join(sorted(metric_registry))
        raise _refusal(name, f"names the metric {metric['metric']}; lm-eval brings {known}.")
    if metric.get("aggregation", "mean") not in aggregation_registry:
        known = ", ".join(sorted(aggregation_registry))
        raise _refusal(name, f"names the aggregation {metric['aggregation']}; lm-eval brings {known}.")


def _refusal(name: str, words: str) -> StageError:
    return StageError(Reason.DATASET_INVALID, f"evaluation.tasks {name}: {name}.yaml {words}")
