"""What ended pods said and how they ended. A pod is in a user's namespace: its words are parsed, never trusted.

Pure.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from tuneloop_core.constants import EXIT_PEER_LOST, EXIT_STEP_TIMEOUT, EXIT_TERMINATED
from tuneloop_core.stages import Reason, Stage, Termination
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.pods import Trouble, condition, containers, index_of, node_of, oom_words

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
    return sorted(ended, key=ended_at, reverse=True)


def by_cause(pods: Iterable[Obj]) -> list[Obj]:
    """Ended pods, the last to end first; but of several that train together, those that only followed come later.

    What ended the last pod of each index is compared: of itself, or told to, or since another had ended.
    """
    ended = by_end(pods)
    latest: dict[str, Obj] = {}
    for pod in ended:
        latest.setdefault(index_of(pod), pod)
    chosen = list(map(id, latest.values()))
    return sorted(latest.values(), key=_followed) + [pod for pod in ended if id(pod) not in chosen]


def _followed(pod: Obj) -> bool:
    return terminated_state(pod).get("exitCode") in (EXIT_PEER_LOST, EXIT_TERMINATED)


def ended_at(pod: Obj) -> str:
    """When it ended, as the API server writes times: such texts compare as times do."""
    return str(terminated_state(pod).get("finishedAt") or pod["metadata"].get("creationTimestamp", ""))


def last_termination(pods: Iterable[Obj], stage: Stage, *, outcome: str = "") -> Termination | None:
    """The last readable message of this stage; None where no pod left one."""
    for pod in by_cause(pods):
        try:
            said = Termination.model_validate_json(terminated_state(pod).get("message", ""))
        except ValidationError:
            continue
        if said.stage is stage and outcome in ("", said.outcome):
            return said
    return None


def why_failed(job: Obj, pods: Sequence[Obj], stage: Stage) -> Trouble:
    """Why a failed Job failed: what its last pod said, else how it ended, else the Job's own words."""
    ended = by_cause(pods)
    how = how_ended(ended[0]) if ended else None
    if how is not None and how.reason in _BY_THE_CLUSTER:
        return how
    said = last_termination(pods, stage, outcome="Failed")
    if said is not None:
        return Trouble(str(said.reason or Reason.INTERNAL_ERROR), said.message)
    if how is not None:
        return how
    failed = condition(job, "Failed") or {}
    return Trouble(reasons.RETRIES_EXHAUSTED, failed.get("message") or "the Job failed and its pods are gone")


def why_ended(pod: Obj, stage: Stage) -> Trouble | None:
    """Why this one pod failed; None for one that succeeded, or that was told to end and saved its work."""
    how, said = how_ended(pod), last_termination([pod], stage, outcome="Failed")
    if how is None or how.reason in _BY_THE_CLUSTER:
        return how
    if said is not None:
        obeyed = said.reason is Reason.TERMINATED
        return None if obeyed else Trouble(str(said.reason or Reason.INTERNAL_ERROR), said.message)
    return Trouble(reasons.POD_FAILED, how.message) if how.reason == reasons.RETRIES_EXHAUSTED else how


_BY_THE_CLUSTER = (reasons.OOM_KILLED, reasons.EVICTED, reasons.NODE_LOST, reasons.DEADLINE_EXCEEDED)
_NODE_GONE = ("DeletionByPodGC", "DeletionByTaintManager")


def how_ended(pod: Obj) -> Trouble | None:
    """How a pod ended, as the cluster says it; None when it succeeded."""
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return None
    ended = terminated_state(pod)
    if ended.get("reason") == "OOMKilled":
        return Trouble(reasons.OOM_KILLED, oom_words(pod))
    if status.get("reason") == "DeadlineExceeded":
        words = "the pod ran longer than its deadline; raise training.maxDuration, or checkpoint.interval where saving"
        return Trouble(reasons.DEADLINE_EXCEEDED, f"{words} takes most of the time")
    disruption = condition(pod, "DisruptionTarget")
    if status.get("reason") == "NodeLost" or (disruption or {}).get("reason") in _NODE_GONE:
        return Trouble(reasons.NODE_LOST, f"node {node_of(pod)} was lost, and the pod with it")
    if status.get("reason") == "Evicted" or disruption:
        words = status.get("message") or (disruption or {}).get("message", "")
        return Trouble(reasons.EVICTED, f"the pod was evicted: {words}")
    return _how_exited(ended)


def _how_exited(ended: Obj) -> Trouble:
    """By the exit code alone: it left no message."""
    code = ended.get("exitCode", "unknown")
    if code == EXIT_STEP_TIMEOUT:
        words = "training made no progress within training.stepTimeout; the pod's log shows where every thread stood"
        return Trouble(str(Reason.STEP_TIMEOUT), words)
    return Trouble(
        reasons.RETRIES_EXHAUSTED, f"the container ended with exit code {code}. {ended.get('message', '')}".strip()
    )
