"""The plan stage: verdict, and the condition Feasible. What it took in the end is in ``usage``. Pure."""

from dataclasses import replace

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.api.finetunejob_status import DatasetStatus, PlanStatus, StageStatus
from tuneloop_core.plan.job import Facts, Plan, plan_job
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.conditions import Wanted
from tuneloop_operator.policy.verdicts import State, Verdict

FEASIBLE = "Feasible"
LOOK_AGAIN_SECONDS = 300.0
"""A refused job is planned anew this often: nodes, table and prices may change."""


def plan(job: FineTuneJob, facts: Facts) -> Plan:
    """The plan, with what fetch and check found; ``facts`` bring the machine's side."""
    model = job.status.model
    known = replace(
        facts,
        shape=model.shape if model else None,
        model_bytes=model.bytes if model else 0,
        dataset=job.status.dataset or DatasetStatus(),
    )
    return plan_job(job.spec, known)


def judge(found: Plan) -> Verdict:
    """Done, or stalled with what would fit: then no train pod is made."""
    message = found.status.message
    if found.feasible:
        return Verdict(State.DONE, reasons.SUCCEEDED, message)
    return Verdict(State.STALLED, found.reason, message, look_again=LOOK_AGAIN_SECONDS)


def feasible(found: PlanStatus | None, stage: StageStatus) -> list[Wanted]:
    """The condition, once there is a plan."""
    if found is None:
        return []
    if stage.state != "Succeeded":
        return [Wanted(FEASIBLE, False, stage.reason or reasons.DOES_NOT_FIT, stage.message)]
    if not found.memory_bytes or not found.memory_limit_bytes:
        return [Wanted(FEASIBLE, True, reasons.MEMORY_UNKNOWN, "how much memory there is, or is needed, is not known")]
    need, limit = found.memory_bytes / 2**30, found.memory_limit_bytes / 2**30
    return [Wanted(FEASIBLE, True, reasons.FITS, f"about {need:.1f} GiB of {limit:.1f} GiB")]
