"""Where one stage stands, from its Job and pods: done, on the way, stalled or failed. Pure.

CPU stages that failed are tried again for ever, with backoff, since what they read can be mended from outside; a
failed train stage is final until spec.retries is raised. A stage recorded as done is never judged again, even when
its Job is gone.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from tuneloop_core.api.finetunejob_status import StageStatus
from tuneloop_core.constants import QUEUE_LABEL, QUEUE_PRIORITY_LABEL
from tuneloop_core.stages import Reason, Stage, Termination
from tuneloop_operator import attempts
from tuneloop_operator.names import owner_uids
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.actions import Action, CreateStage, DeleteJob, PatchJob
from tuneloop_operator.policy.conditions import cut, parse_time
from tuneloop_operator.policy.pods import Trouble, condition, find_trouble, refused
from tuneloop_operator.policy.terminations import by_cause, ended_at, last_termination, why_ended, why_failed

Obj = dict[str, Any]

FIRST_RETRY_SECONDS = 30.0
LAST_RETRY_SECONDS = 600.0
SLOW_SECONDS = 60.0
GOES_ON = "suspended; set spec.suspend to false to go on from the last checkpoint"
SAME_AGAIN = frozenset(
    {
        Reason.LOSS_NAN,
        Reason.LOSS_SPIKE,
        Reason.MODEL_UNSUPPORTED,
        Reason.DATASET_INVALID,
        Reason.OUT_OF_MEMORY,
        reasons.OOM_KILLED,
    }
)
"""What ends training of the same spec again, from whichever checkpoint: resuming is exact."""
PATIENCE_SECONDS = 5.0  # how long a pod may take to appear or start before we ask why


class State(StrEnum):
    """Where a stage stands."""

    DONE = "Done"
    RUNNING = "Running"
    PENDING = "Pending"
    STALLED = "Stalled"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


@dataclass(frozen=True)
class StageFacts:
    """What the cluster knows of one stage; ``events`` only where they were asked for."""

    job: Obj | None = None
    pods: tuple[Obj, ...] = ()
    events: tuple[Obj, ...] = ()


@dataclass(frozen=True)
class Case:
    """One stage to judge."""

    stage: Stage
    previous: StageStatus
    facts: StageFacts
    owner_uid: str
    suspend: bool
    retries: int
    now: datetime
    priority: str = ""
    heard: str = ""  # when a training pod last told its progress

    @property
    def limit(self) -> int:
        """The train Job's backoffLimit."""
        return attempts.backoff_limit(self.retries, self.previous.retries_used)


@dataclass(frozen=True)
class Verdict:
    """The judgement; ``said`` carries the result of a stage that is done."""

    state: State
    reason: str
    message: str
    actions: tuple[Action, ...] = ()
    look_again: float | None = None
    said: Termination | None = None
    counted_uid: str = field(default="")  # the failed Job that this verdict counts as an attempt
    retries_used: int | None = None  # by training that failed for good


def judge(case: Case) -> Verdict:
    """Where the stage stands and what to do about it."""
    job = case.facts.job
    if job is None:
        return _without_job(case)
    if case.owner_uid not in owner_uids(job):
        return foreign_object("Job", job["metadata"]["name"])
    if job["metadata"].get("deletionTimestamp"):
        return Verdict(State.PENDING, reasons.RETRYING, "the old Job is being removed", look_again=PATIENCE_SECONDS)
    if _is(job, "Complete"):
        return _completed(case, job)
    if _is(job, "Failed"):
        return _failed(case, job)
    return _active(case, job)


def foreign_object(kind: str, name: str) -> Verdict:
    """A foreign object has the name that we need."""
    message = f"{kind} {name} exists already and belongs to somebody else; delete it, or take another name for this"
    return Verdict(State.STALLED, reasons.FOREIGN_OBJECT, message, look_again=60.0)


def invalid_result(stage: Stage, error: ValidationError) -> Verdict:
    """A pod's result is none to this release."""
    first = error.errors()[0]
    found = f"the {stage.value} pod's result does not parse: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return Verdict(State.STALLED, reasons.INVALID_RESULT, f"{found}. Trainer image and operator must match")


def retry_seconds(attempts: int) -> float:
    """Wait before the next Job of a failed CPU stage: 30 s doubling to 10 minutes."""
    return min(FIRST_RETRY_SECONDS * 2.0 ** max(0, min(attempts, 20) - 1), LAST_RETRY_SECONDS)


def _is(job: Obj, kind: str) -> bool:
    found = condition(job, kind)
    return found is not None and found.get("status") == "True"


def _without_job(case: Case) -> Verdict:
    wait = _until_retry(case)
    if wait > 0:
        return Verdict(State.STALLED, case.previous.reason, case.previous.message, look_again=wait)
    if case.suspend:
        begun = case.stage is Stage.TRAIN and case.previous.start_time is not None
        words = GOES_ON if begun else f"suspended before {case.stage.value}; set spec.suspend to false"
        return Verdict(State.SUSPENDED, reasons.SUSPENDED, words)
    return Verdict(State.PENDING, reasons.CREATED, f"making the {case.stage.value} Job", (CreateStage(case.stage),))


def _until_retry(case: Case) -> float:
    """Seconds until a failed stage is tried again; 0 when it did not fail or its time has come."""
    if case.previous.state != "Failed" or case.previous.finish_time is None or case.stage is Stage.TRAIN:
        return 0.0
    due = parse_time(case.previous.finish_time) + timedelta(seconds=retry_seconds(case.previous.attempts))
    return max(0.0, (due - case.now).total_seconds())


def _completed(case: Case, job: Obj) -> Verdict:
    said = last_termination(case.facts.pods, case.stage, outcome="Succeeded")
    if said is not None and said.result is not None:
        return Verdict(State.DONE, reasons.SUCCEEDED, said.message, said=said)
    # The result is in the work folder: the stage run again answers in seconds.
    ended = parse_time(str(job["status"].get("completionTime") or case.now.isoformat()))
    wait = (ended + timedelta(seconds=PATIENCE_SECONDS) - case.now).total_seconds()
    message = f"{case.stage.value} ended without leaving its result; it is run again and answers from its work folder"
    if wait > 0:  # the pod's last status may still be on its way
        return Verdict(State.RUNNING, reasons.RESULT_MISSING, message, look_again=wait)
    return Verdict(State.PENDING, reasons.RESULT_MISSING, message, (_delete(case, job),))


def _failed(case: Case, job: Obj) -> Verdict:
    why = why_failed(job, case.facts.pods, case.stage)
    if case.stage is Stage.TRAIN:
        return _training_failed(case, job, why)
    message = f"{cut(why.message, 900).rstrip('.')}. It is tried again by itself, with growing waits"
    if case.previous.job_uid != job["metadata"]["uid"] or case.previous.state != "Failed":
        wait = retry_seconds(case.previous.attempts + 1)
        return Verdict(State.STALLED, why.reason, message, look_again=wait, counted_uid=job["metadata"]["uid"])
    wait = _until_retry(case)
    if wait > 0 or case.suspend:
        return Verdict(State.STALLED, why.reason, message, look_again=max(wait, 1.0) if wait else None)
    return Verdict(State.STALLED, why.reason, message, (_delete(case, job),))


def _training_failed(case: Case, job: Obj, why: Trouble) -> Verdict:
    """Final, unless spec.retries was raised in the meantime."""
    used = attempts.used_by(int(job["spec"].get("backoffLimit", 0)), case.previous.retries_used)
    again = 1.0 if attempts.may_go_on(case.retries, used) else None
    words, uid = _final_words(why, job, used), job["metadata"]["uid"]
    return Verdict(State.FAILED, why.reason, words, (), again, counted_uid=uid, retries_used=used)


def _final_words(why: Trouble, job: Obj, used: int) -> str:
    tries = int(job.get("status", {}).get("failed", 0))
    words = f"after {tries} tries: " if tries > 1 else ""
    found = f"{words}{cut(why.message, 750).rstrip('.')}"
    if why.reason in SAME_AGAIN:
        return f"{found}. Another try would end the same, and the spec is fixed: change it in a new job, name it -v2"
    return (
        f"{found}. The work is kept: raise spec.retries above {used} to go on from the last checkpoint, or make a new "
        "job under another name"
    )


def _active(case: Case, job: Obj) -> Verdict:
    if case.stage is Stage.TRAIN:
        steered = _steer(case, job)
        if steered is not None:
            return steered
    elif case.previous.state == "Failed":  # a retry after a failure: stalled until it ends otherwise
        return Verdict(State.STALLED, case.previous.reason, case.previous.message, look_again=30.0)
    trouble = find_trouble(case.facts.pods, case.facts.events) or _no_pod(case, job)
    if trouble is not None:
        return Verdict(State.PENDING, trouble.reason, trouble.message, look_again=30.0)
    if any(pod.get("status", {}).get("phase") == "Running" for pod in case.facts.pods):
        return Verdict(State.RUNNING, reasons.RUNNING, f"{case.stage.value} is running")
    if (between := _between_tries(case)) is not None:
        return between
    message = f"the {case.stage.value} pod is starting"
    return Verdict(State.PENDING, reasons.STARTING, message, look_again=_start_wait(case, job))


def _between_tries(case: Case) -> Verdict | None:
    """Why the last training pod ended, until the next one runs; the Job controller makes it after a growing wait."""
    ended = by_cause(case.facts.pods) if case.stage is Stage.TRAIN else []
    why = why_ended(ended[0], case.stage) if ended else None
    if why is None or ended_at(ended[0]) < case.heard:  # a pod since then, that is gone without a trace
        return None
    words = f"{cut(why.message, 850).rstrip('.')}. A new pod goes on from the last checkpoint"
    return Verdict(State.PENDING, why.reason, words, look_again=30.0)


def _start_wait(case: Case, job: Obj) -> float:
    """Soon while the Job is young, since a refusal is only told in Events; later a pod's own events wake us."""
    since = job["metadata"].get("creationTimestamp", "")
    young = bool(since) and (case.now - parse_time(since)).total_seconds() < 2 * PATIENCE_SECONDS
    return PATIENCE_SECONDS if young else SLOW_SECONDS


def _steer(case: Case, job: Obj) -> Verdict | None:
    """Suspend, resume, retries: the fields of the train Job that a user may turn while it runs."""
    queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL, "")
    held = bool(job["spec"].get("suspend", False))
    if case.suspend:
        return _leave_queue(case, job, queue) if queue else _suspended(case, job, held=held)
    if held and queue:
        return _queued(case, job, queue)
    changes: dict[str, Any] = {"suspend": False} if held else {}
    if job["spec"].get("backoffLimit") != case.limit:
        changes["backoffLimit"] = case.limit
    if changes:
        return Verdict(State.PENDING, reasons.STARTING, "training goes on", (_patch(case, job, changes),))
    return None


def _queued(case: Case, job: Obj, queue: str) -> Verdict:
    """Only the queue says when; a changed priority is passed on while it has not."""
    labels = job["metadata"]["labels"]
    changed = labels.get(QUEUE_PRIORITY_LABEL, "") != case.priority
    name = job["metadata"]["name"]
    actions = (PatchJob(case.stage, name, labels={QUEUE_PRIORITY_LABEL: case.priority or None}),) if changed else ()
    message = f"waiting in queue {queue} for its turn"
    return Verdict(State.PENDING, reasons.QUEUE_WAITING, message, actions, look_again=60.0)


def _leave_queue(case: Case, job: Obj, queue: str) -> Verdict:
    """Delete the Job: a queue would start an admitted Job again that somebody else suspends."""
    message = f"saving a checkpoint and leaving queue {queue}"
    action = DeleteJob(case.stage, job["metadata"]["name"], job["metadata"]["uid"], foreground=True)
    return Verdict(State.PENDING, reasons.STOPPING, message, (action,), look_again=30.0)


def _suspended(case: Case, job: Obj, *, held: bool) -> Verdict:
    if not held:
        return Verdict(State.PENDING, reasons.STOPPING, "saving a checkpoint", (_patch(case, job, {"suspend": True}),))
    alive = [pod for pod in case.facts.pods if pod.get("status", {}).get("phase") in ("Pending", "Running")]
    if alive:
        return Verdict(State.PENDING, reasons.STOPPING, "saving a checkpoint before the pod goes", look_again=30.0)
    return Verdict(State.SUSPENDED, reasons.SUSPENDED, GOES_ON)


def _no_pod(case: Case, job: Obj) -> Trouble | None:
    if len(case.facts.pods) >= _wanted_pods(job):
        return None
    return refused(case.facts.events, f"Job {job['metadata']['name']}")


def _wanted_pods(job: Obj) -> int:
    """One, or those that train together."""
    return int(job["spec"].get("parallelism", 1))


def needs_events(facts: StageFacts, now: datetime) -> bool:
    """Whether Events should be read: an unfinished Job whose pod is missing or has not started for some seconds."""
    job = facts.job
    if job is None or _is(job, "Complete") or _is(job, "Failed") or job["spec"].get("suspend"):
        return False
    alive = [pod for pod in facts.pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")]
    waiting = [pod for pod in alive if pod["status"]["phase"] != "Running"]
    if any(is_unscheduled(pod) for pod in waiting) or (not waiting and len(alive) >= _wanted_pods(job)):
        return False
    since = (waiting[0] if waiting else job)["metadata"].get("creationTimestamp", "")
    return bool(since) and (now - parse_time(since)).total_seconds() >= PATIENCE_SECONDS


def is_unscheduled(pod: Obj) -> bool:
    """The pod itself says why it has no node."""
    found = condition(pod, "PodScheduled")
    return found is not None and found.get("status") == "False"


def _delete(case: Case, job: Obj) -> DeleteJob:
    return DeleteJob(case.stage, job["metadata"]["name"], job["metadata"]["uid"])


def _patch(case: Case, job: Obj, spec: dict[str, Any]) -> PatchJob:
    return PatchJob(case.stage, job["metadata"]["name"], spec)
