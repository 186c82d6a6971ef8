"""What ended pods said and how they ended. A pod is in a user's namespace: its words are parsed, never trusted.

Pure.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from tuneloop_core.stages import Reason, Stage, Termination
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.conditions import parse_time
from tuneloop_operator.policy.pods import Trouble, condition, containers, oom_words

Obj = dict[str, Any]


def terminated_state(pod: Obj) -> Obj:
    """``state.terminated`` of the main container; empty while it runs."""
    for status in containers(pod):
        ended = status.get("state", {}).get("terminated")
        if ended:
            return dict(ended)
    return {}


def by_end(pods: Iterable[Obj]) -> list[Obj]:
    """Ended pods, the last to end first."""
    ended = [pod for pod in pods if pod.get("status", {}).get("phase") in ("Succeeded", "Failed")]
    return sorted(ended, key=_ended_at, reverse=True)


def _ended_at(pod: Obj) -> str:
    return str(terminated_state(pod).get("finishedAt") or pod["metadata"].get("creationTimestamp", ""))


def last_termination(pods: Iterable[Obj], stage: Stage, *, outcome: str = "") -> Termination | None:
    """The last readable message of this stage; None where no pod left one."""
    for pod in by_end(pods):
        try:
            said = Termination.model_validate_json(terminated_state(pod).get("message", ""))
        except ValidationError:
            continue
        if said.stage is stage and outcome in ("", said.outcome):
            return said
    return None


def why_failed(job: Obj, pods: Sequence[Obj], stage: Stage) -> Trouble:
    """Why a failed Job failed: what its last pod said, else how it ended, else the Job's own words."""
    ended = by_end(pods)
    said = last_termination(pods, stage, outcome="Failed")
    how = how_ended(ended[0]) if ended else None
    if how is not None and how.reason in (reasons.OOM_KILLED, reasons.EVICTED, reasons.DEADLINE_EXCEEDED):
        return how
    if said is not None:
        return Trouble(str(said.reason or Reason.INTERNAL_ERROR), said.message)
    if how is not None:
        return how
    failed = condition(job, "Failed") or {}
    return Trouble(reasons.RETRIES_EXHAUSTED, failed.get("message") or "the Job failed and its pods are gone")


def how_ended(pod: Obj) -> Trouble | None:
    """How a pod ended that said nothing; None when it succeeded."""
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return None
    ended = terminated_state(pod)
    if ended.get("reason") == "OOMKilled":
        return Trouble(reasons.OOM_KILLED, oom_words(pod))
    if status.get("reason") == "DeadlineExceeded":
        return Trouble(reasons.DEADLINE_EXCEEDED, "the pod ran longer than its deadline; raise training.maxDuration")
    disruption = condition(pod, "DisruptionTarget")
    if status.get("reason") == "Evicted" or disruption:
        words = status.get("message") or (disruption or {}).get("message", "")
        return Trouble(reasons.EVICTED, f"the pod was evicted: {words}")
    if status.get("reason") == "NodeLost":
        return Trouble(reasons.NODE_LOST, "the pod's node was lost")
    code = ended.get("exitCode", "unknown")
    return Trouble(
        reasons.RETRIES_EXHAUSTED, f"the container ended with exit code {code}. {ended.get('message', '')}".strip()
    )


def run_seconds(pods: Iterable[Obj]) -> float:
    """Seconds that the main containers ran, all pods together; running ones are not counted yet."""
    total = 0.0
    for pod in pods:
        ended = terminated_state(pod)
        if ended.get("startedAt") and ended.get("finishedAt"):
            total += (parse_time(ended["finishedAt"]) - parse_time(ended["startedAt"])).total_seconds()
    return total
