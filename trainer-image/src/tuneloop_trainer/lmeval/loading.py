"""A task as lm-eval asks it, with the rows that fetch brought. Offline: no repository is asked, no fetched code is run.

The same for the dry run of check and for train, so that what was tried is what is asked.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneloop_core.api.evaltasks import EvaluationTask
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.lmeval import custom, known
from tuneloop_trainer.paths import Paths

FEW_SHOT_SEED = 1234  # lm-eval's own
LOUD = ("lm_eval", "datasets", "evaluate", "absl")


def load(task: EvaluationTask, paths: Paths) -> dict[str, Any]:
    """lm-eval's ``TaskDict`` of one entry of ``evaluation.tasks``; raises ``DatasetInvalid`` in words."""
    _quiet()
    folder = paths.task(task.name)
    own = custom.file_of(folder, task.name)
    try:
        made = _own_task(own, task, folder) if own else _known_task(task, folder)
    except StageError:
        raise
    except Exception as error:  # lm-eval and datasets raise what they like on rows that do not fit
        raise unfit(task.name, error) from error
    return _settled(made)


def unfit(name: str, error: Exception) -> StageError:
    """The error for rows that a task cannot ask."""
    said = " ".join(str(error).split())[:500]
    return StageError(
        Reason.DATASET_INVALID,
        f"evaluation.tasks {name}: lm-eval cannot ask the rows of its source: {type(error).__name__}: {said}. Check "
        "that source.uri holds the splits and columns that the task names.",
    )


def _own_task(path: Path, task: EvaluationTask, folder: Path) -> Any:
    from lm_eval.api.task import ConfigurableTask  # noqa: PLC0415 - slow to import

    _sandbox()
    config = custom.read_task(path, task.name)
    return ConfigurableTask(config=config | _overrides(task, folder, [config]))


def _known_task(task: EvaluationTask, folder: Path) -> Any:
    from lm_eval.tasks._factory import TaskFactory  # noqa: PLC0415 - slow to import

    found = known.find(task.name)
    if found is None:
        raise known.unknown(task.name)
    _sandbox()
    members = list(known.leaves(task.name, found.index).values())
    overrides = _overrides(task, folder, members)
    return TaskFactory().build(found.index[task.name], overrides=overrides, registry=found.index)


def _overrides(task: EvaluationTask, folder: Path, members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows from the folder, and what of the settings it makes needless."""
    from datasets import get_dataset_config_names, get_dataset_split_names  # noqa: PLC0415 - slow to import

    found: dict[str, Any] = {"dataset_path": str(folder)}
    plain = get_dataset_config_names(str(folder)) == ["default"]
    if plain:  # no division into configurations, such as ARC-Easy and ARC-Challenge
        found["dataset_name"] = None
    if task.few_shot is not None:
        found["num_fewshot"] = task.few_shot
    shown = task.few_shot if task.few_shot is not None else max(each.get("num_fewshot") or 0 for each in members)
    if plain and not shown:
        found |= _unneeded_splits(members, get_dataset_split_names(str(folder), "default"))
    return found


def _unneeded_splits(members: Sequence[dict[str, Any]], there: Sequence[str]) -> dict[str, Any]:
    """Where no examples are shown, the rows that are asked are enough."""
    asked = {each.get("test_split") or each.get("validation_split") for each in members}
    kept = {*there, *asked}
    keys = ("training_split", "validation_split", "fewshot_split")
    return {key: None for key in keys if not {each.get(key) for each in members} & kept}


def _settled(made: Any) -> dict[str, Any]:
    """lm-eval's ``TaskDict``, with its own command's defaults."""
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 - slow to import

    loaded: dict[str, Any] = dict(TaskManager(include_defaults=False).load(made))
    for each in loaded["tasks"].values():
        if each.get_config("num_fewshot") is None:
            each.set_config(key="num_fewshot", value=0)
        each.set_fewshot_seed(seed=FEW_SHOT_SEED)
    return loaded


def _sandbox() -> None:
    """Templates of tasks are text that may come from anywhere: rendered without a way to Python's inside."""
    from jinja2 import StrictUndefined  # noqa: PLC0415
    from jinja2.sandbox import SandboxedEnvironment  # noqa: PLC0415
    from lm_eval import utils  # noqa: PLC0415 - slow to import

    if isinstance(utils.env, SandboxedEnvironment):
        return
    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters.update(utils.env.filters)
    utils.env = sandbox


def _quiet() -> None:
    from datasets import disable_progress_bars  # noqa: PLC0415 - slow to import

    disable_progress_bars()
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
