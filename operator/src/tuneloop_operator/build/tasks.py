"""What the fetch pod needs for the rows of ``evaluation.tasks``: a claim or a Secret's keys for each source.

Pure. Names are by place in the list (``task-0``): a task's own name may be too long for a volume.
"""

from collections.abc import Iterator, Sequence

from tuneloop_core.api.evaltasks import EvaluationTask, TaskSource
from tuneloop_operator.build import sources


def volumes(tasks: Sequence[EvaluationTask]) -> sources.Volumes:
    """(volume, mount) pairs for the tasks that name a source."""
    return [
        pair
        for purpose, source in _named(tasks)
        for pair in sources.source_volumes(purpose, source.uri, source.credentials_secret)
    ]


def claim_paths(tasks: Sequence[EvaluationTask]) -> dict[str, str]:
    """Where the claims of the tasks from ``pvc://`` are mounted, by purpose."""
    return {purpose: sources.claim_path(purpose) for purpose, source in _named(tasks) if sources.claim_of(source.uri)}


def _named(tasks: Sequence[EvaluationTask]) -> Iterator[tuple[str, TaskSource]]:
    for number, task in enumerate(tasks):
        if task.source is not None:
            yield f"task-{number}", task.source
