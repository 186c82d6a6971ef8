"""What the train stage took so far: status.usage. Pure.

Pods go (suspended, drained, of an earlier Job), and the operator may be away: what was counted is never counted again,
what is new is added. So only the time since the last count is looked at, of whatever pods are there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.api.finetunejob_status import PlanStatus, UsageStatus
from tuneloop_core.plan import cost
from tuneloop_operator.policy.conditions import parse_time, timestamp
from tuneloop_operator.policy.pods import condition, containers
from tuneloop_operator.policy.terminations import terminated_state

Obj = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """When one pod's main container ran; ``ended`` is now for one that still does."""

    started: datetime
    ended: datetime

    def seconds(self, since: datetime | None) -> float:
        """Seconds of it after ``since``."""
        begun = self.started if since is None else max(self.started, since)
        return max(0.0, (self.ended - begun).total_seconds())


def runs(pods: Iterable[Obj], now: datetime) -> list[Run]:
    """Of the pods whose container was begun."""
    return [run for run in (_run(pod, now) for pod in pods) if run is not None]


def has_news(job: FineTuneJob, pods: Sequence[Obj], now: datetime) -> bool:
    """Whether a pod ended that is not counted to its end: soon it may be gone."""
    since = _since(job.status.usage)
    ended = [_run(pod, now) for pod in pods if terminated_state(pod)]
    return any(run is not None and run.seconds(since) > 0 for run in ended)


def measured(
    job: FineTuneJob, pods: Iterable[Obj], now: datetime, training_seconds: float = 0.0, peak: int = 0
) -> UsageStatus:
    """The usage with what these pods ran since the last count; it never becomes less.

    Several pods that train together are one stage, which holds all their devices. ``training_seconds`` and ``peak``
    (bytes) are what the trainer itself told at its end.
    """
    known, planned, resources = job.status.usage or UsageStatus(), job.status.plan or PlanStatus(), job.spec.resources
    whole = parse_time(timestamp(now))  # as the status keeps it, or a second's fraction would count twice
    found, since = runs(pods, whole), _since(job.status.usage)
    seconds = sum(run.seconds(since) for run in found) / resources.nodes
    total = max(seconds, known.train_seconds) if since is None else known.train_seconds + seconds
    total = max(total, training_seconds)
    return UsageStatus(
        accelerator_seconds=round(resources.accelerators * resources.nodes * total, 1),
        training_seconds=round(max(training_seconds, known.training_seconds), 1),
        train_seconds=round(total, 1),
        peak_memory_bytes=max(peak, known.peak_memory_bytes),
        price=round(cost.price(total, 1, planned.price_per_hour), 4),
        counted_until=timestamp(max([whole, *(run.ended for run in found), *([since] if since else [])])),
    )


def _since(usage: UsageStatus | None) -> datetime | None:
    return parse_time(usage.counted_until) if usage and usage.counted_until else None


def _run(pod: Obj, now: datetime) -> Run | None:
    ended = terminated_state(pod)
    if ended.get("startedAt") and ended.get("finishedAt"):
        return Run(parse_time(ended["startedAt"]), parse_time(ended["finishedAt"]))
    started = [status.get("state", {}).get("running", {}).get("startedAt", "") for status in containers(pod)]
    return next((Run(parse_time(since), _lost_at(pod) or now) for since in started if since), None)


def _lost_at(pod: Obj) -> datetime | None:
    """When a pod was given up whose kubelet cannot say that it ended; None for one that runs."""
    disruption = condition(pod, "DisruptionTarget") or {}
    since = disruption.get("lastTransitionTime", "")
    return parse_time(since) if since and pod.get("status", {}).get("phase") == "Failed" else None
