"""The plan stage and what it cost in the end: verdict, the condition Feasible, status.usage. Pure."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.api.finetunejob_status import DatasetStatus, PlanStatus, StageStatus, UsageStatus
from tuneloop_core.plan import cost
from tuneloop_core.plan.job import Facts, Plan, plan_job
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.conditions import Wanted, parse_time
from tuneloop_operator.policy.pods import containers
from tuneloop_operator.policy.terminations import run_seconds
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


def measured(job: FineTuneJob, seconds: float, training_seconds: float, peak: int) -> UsageStatus:
    """What the train stage took so far; it never becomes less, though pods of earlier tries may be gone.

    ``seconds`` are of all pods together: several that train together are one stage, which holds all their devices.
    """
    known, planned = job.status.usage or UsageStatus(), job.status.plan or PlanStatus()
    resources = job.spec.resources
    train_seconds = max(seconds / resources.nodes, training_seconds, known.train_seconds)
    return UsageStatus(
        accelerator_seconds=round(resources.accelerators * resources.nodes * train_seconds, 1),
        training_seconds=round(max(training_seconds, known.training_seconds), 1),
        train_seconds=round(train_seconds, 1),
        peak_memory_bytes=max(peak, known.peak_memory_bytes),
        price=round(cost.price(train_seconds, 1, planned.price_per_hour), 4),
    )


def running(job: FineTuneJob, pods: Iterable[dict[str, Any]], now: datetime) -> UsageStatus:
    """The same while it runs or after it failed: ended pods whole, a running one up to now."""
    every = list(pods)
    return measured(job, run_seconds(every) + sum(_alive_seconds(pod, now) for pod in every), 0.0, 0)


def _alive_seconds(pod: dict[str, Any], now: datetime) -> float:
    started = [status.get("state", {}).get("running", {}).get("startedAt", "") for status in containers(pod)]
    return max((max(0.0, (now - parse_time(since)).total_seconds()) for since in started if since), default=0.0)
