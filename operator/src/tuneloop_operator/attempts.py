"""How often training is tried, and what its Jobs are called; used by every layer. Never looks anything up.

Tries within a Job are the Job controller's: ``backoffLimit`` and its growing waits (10 s doubling to 10 minutes). When
a Job has failed for good, ``spec.retries`` that is raised above what was used makes another one, which goes on from
the checkpoint. What was used only ever grows, so each of these Jobs has a name of its own that follows from the status.
"""

from tuneloop_core.api.finetunejob_status import FineTuneJobStatus
from tuneloop_core.stages import Stage
from tuneloop_operator import names


def retries_used(status: FineTuneJobStatus) -> int | None:
    """``spec.retries`` that a final failure of training used up; None while there was none."""
    return next((stage.retries_used for stage in status.stages if stage.name == Stage.TRAIN.value), None)


def train_job(name: str, used: int | None) -> str:
    """Its first Job, or the one that begins with retry ``used + 1``."""
    first = names.stage_job(name, Stage.TRAIN)
    return first if used is None else f"{first}-{used + 1}"


def backoff_limit(retries: int, used: int | None) -> int:
    """Failures that the present Job survives: its first pod is a retry itself when there was a Job before."""
    return max(0, retries if used is None else retries - used - 1)


def used_by(limit: int, used: int | None) -> int:
    """What is used up when a Job with this ``backoffLimit`` has failed."""
    return limit if used is None else used + 1 + limit


def may_go_on(retries: int, used: int | None) -> bool:
    """Whether ``spec.retries`` was raised since training failed for good."""
    return used is not None and retries > used
