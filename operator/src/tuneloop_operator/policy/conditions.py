"""Conditions as kstatus reads them: Ready, Reconciling while on the way, Stalled when a person must act.

Reconciling and Stalled are absent when calm, and never both there. Never decides what the state is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tuneloop_core.api.conditions import Condition

READY = "Ready"
RECONCILING = "Reconciling"
STALLED = "Stalled"
COMPLETE = "Complete"
FAILED = "Failed"
SUSPENDED = "Suspended"

STATES = (FAILED, STALLED, RECONCILING, SUSPENDED, COMPLETE, READY, "New")
"""What a resource is, the first that holds: a failed job is Stalled too, a rolled-back deployment Ready too."""

MESSAGE_LIMIT = 1000  # of the API's 1024: words are cut at a character, not at a byte


@dataclass(frozen=True)
class Wanted:
    """A condition without its bookkeeping."""

    type: str
    holds: bool
    reason: str
    message: str


def merge(old: Iterable[Condition], wanted: Iterable[Wanted], generation: int, now: datetime) -> list[Condition]:
    """The new list: what is not wanted goes; a time of transition stays unless the status changed."""
    before = {condition.type: condition for condition in old}
    return [_condition(before.get(item.type), item, generation, now) for item in wanted]


def _condition(before: Condition | None, item: Wanted, generation: int, now: datetime) -> Condition:
    status: Literal["True", "False"] = "True" if item.holds else "False"
    kept = before is not None and before.status == status
    return Condition(
        type=item.type,
        status=status,
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before and kept else timestamp(now),
        reason=item.reason,
        message=cut(item.message),
    )


def holds(conditions: Iterable[Condition], kind: str) -> bool:
    """Whether a condition of this type is there and True."""
    return any(condition.type == kind and condition.status == "True" for condition in conditions)


def state_of(true: Iterable[str]) -> str:
    """The one word of ``STATES`` for these conditions that are True; New where the operator has said nothing yet."""
    found = set(true)
    return next((state for state in STATES if state in found), STATES[-1])


def cut(message: str, limit: int = MESSAGE_LIMIT) -> str:
    """A message within its limit, with an ellipsis where it was cut."""
    return message if len(message) <= limit else message[: limit - 1] + "…"


def timestamp(moment: datetime) -> str:
    """RFC 3339 in seconds, as the API server writes times."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """A time as the API server writes it, with or without a fraction; ValueError otherwise."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
