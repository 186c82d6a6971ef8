"""What status.scaling and Events say of replicas: the number, why, and the last ten changes. Pure.

Written when the number changes, or a reason that was for a while is over: one whose figures move with every second is
no news.
"""

from datetime import datetime

from tuneloop_core.api.modeldeployment_status import ScalingEvent, ScalingStatus
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.actions import Note
from tuneloop_operator.policy.autoscale import PASSING
from tuneloop_operator.policy.conditions import cut, timestamp

HISTORY_KEPT = 10
MESSAGE_LIMIT = 256


def scaling_status(old: ScalingStatus | None, desired: int, reason: str, now: datetime) -> ScalingStatus:
    """The block as it should be; the old one while the number is the same and its reason can still hold."""
    if old is not None and old.desired == desired and old.reason and old.reason not in PASSING:
        return old
    message = cut(reason, MESSAGE_LIMIT)
    history = list(old.history) if old is not None else []
    if old is not None and old.desired != desired:
        event = ScalingEvent(time=timestamp(now), from_replicas=old.desired, to_replicas=desired, message=message)
        history = [*history, event][-HISTORY_KEPT:]
    return ScalingStatus(desired=desired, reason=message, history=history)


def scaling_notes(old: ScalingStatus | None, new: ScalingStatus | None) -> list[Note]:
    """One Event for a change of the number."""
    if old is None or new is None or old.desired == new.desired:
        return []
    words = f"from {old.desired} to {new.desired} replicas: {new.reason}"
    return [Note(_reason(old.desired, new.desired), words)]


def _reason(before: int, after: int) -> str:
    if after > before:
        return reasons.SCALED_UP if before else reasons.WOKEN
    return reasons.SCALED_DOWN if after else reasons.SCALED_TO_ZERO
