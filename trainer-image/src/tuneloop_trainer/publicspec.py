"""A job's spec as artifacts and trackers have it: without what may be a secret. Never changes what is trained."""

from tuneloop_core.api.evaltasks import TaskSource
from tuneloop_core.api.finetunejob import FineTuneJobSpec
from tuneloop_core.api.sources import DatasetSource
from tuneloop_core.uris import shown


def public_spec(spec: FineTuneJobSpec) -> FineTuneJobSpec:
    """The spec with ``uris.shown`` in place of each source of rows."""
    tasks = [
        task if task.source is None else task.model_copy(update={"source": _shown(task.source)})
        for task in spec.evaluation.tasks
    ]
    evaluation = spec.evaluation.model_copy(update={"tasks": tasks})
    return spec.model_copy(update={"dataset": _dataset(spec.dataset), "evaluation": evaluation})


def _dataset(dataset: DatasetSource) -> DatasetSource:
    split = dataset.validation
    held_out = split.model_copy(update={"uri": shown(split.uri)}) if split.uri else split
    return dataset.model_copy(update={"uri": shown(dataset.uri), "validation": held_out})


def _shown(source: TaskSource) -> TaskSource:
    return source.model_copy(update={"uri": shown(source.uri)})
