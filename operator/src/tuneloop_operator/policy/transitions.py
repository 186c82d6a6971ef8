"""Which Events a change of status is worth: transitions only, so that calm resources stay silent. Pure."""

from collections.abc import Sequence

from tuneloop_core.api.conditions import Condition
from tuneloop_core.api.finetunejob_status import NoticeStatus, StageStatus
from tuneloop_core.stages import Reason
from tuneloop_operator.policy import conditions, reasons
from tuneloop_operator.policy.actions import Note

WARNED_REASONS = frozenset(
    {
        reasons.QUOTA_EXCEEDED,
        reasons.POD_REFUSED,
        reasons.UNSCHEDULABLE,
        reasons.IMAGE_NOT_PULLED,
        reasons.VOLUME_NOT_MOUNTED,
        reasons.CLAIM_PENDING,
        reasons.CONTAINER_NOT_STARTED,
        reasons.NODE_LOST,
        reasons.CRASHING,
        reasons.OOM_KILLED,
        reasons.EVICTED,
        reasons.DEADLINE_EXCEEDED,
        reasons.POD_FAILED,
        *(Reason.STEP_TIMEOUT, Reason.OUT_OF_MEMORY, Reason.INTERNAL_ERROR, Reason.PEER_LOST, Reason.PEERS_MISSING),
        Reason.ACCELERATOR_FAILED,
    }
)
TOLD = {conditions.COMPLETE: False, conditions.SUSPENDED: False, conditions.FAILED: True, conditions.STALLED: True}
"""Condition types that are told when they come True, and whether as a warning."""


def stage_notes(old: Sequence[StageStatus], new: Sequence[StageStatus]) -> list[Note]:
    """One Note for each stage that has succeeded since."""
    before = {stage.name: stage.state for stage in old}
    return [
        Note(f"{stage.name.capitalize()}Succeeded", stage.message)
        for stage in new
        if stage.state == "Succeeded" and before.get(stage.name) != "Succeeded"
    ]


def training_notes(old: Sequence[NoticeStatus], new: Sequence[NoticeStatus]) -> list[Note]:
    """One Note for each thing that training or publish has met since; damage and a deaf tracker are warnings."""
    warned = (Reason.CHECKPOINT_CORRUPT.value, Reason.TRACKING_FAILED.value)
    return [Note(each.reason, each.message, warning=each.reason in warned) for each in new if each not in old]


def condition_notes(old: Sequence[Condition], new: Sequence[Condition]) -> list[Note]:
    """Notes for conditions that came true, changed their reason while true, or began to warn."""
    before = {condition.type: condition for condition in old}
    notes: list[Note] = []
    for condition in new:
        if condition.status != "True" or not _is_news(before.get(condition.type), condition):
            continue
        if condition.type == conditions.RECONCILING and condition.reason in WARNED_REASONS:
            notes.append(Note(condition.reason, condition.message, warning=True))
        elif condition.type in TOLD and not (condition.type == conditions.STALLED and _also_failed(new)):
            notes.append(Note(condition.reason, condition.message, warning=TOLD[condition.type]))
    return notes


def _is_news(before: Condition | None, now: Condition) -> bool:
    return before is None or before.status != "True" or before.reason != now.reason


def _also_failed(new: Sequence[Condition]) -> bool:
    return conditions.holds(new, conditions.FAILED)
