"""A stored resource that this release's models refuse: what to say about it, while all else stays as it is.

The API server took it under another release's rules. Never decides about children: what runs, runs on. Pure.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from tuneloop_core.api.conditions import Condition
from tuneloop_operator.policy import conditions, reasons
from tuneloop_operator.policy.conditions import Wanted, cut

Obj = dict[str, Any]

TOLD: Final = 3  # faults that a message names; the others are counted
FOUND_LIMIT: Final = 80  # characters of what was found
OURS: Final = (conditions.READY, conditions.RECONCILING, conditions.STALLED)


def words_of(error: ValidationError) -> tuple[str, str]:
    """(reason, message): each field, what was found there, what would be right, and what to do."""
    faults = error.errors(include_url=False)
    told = "; ".join(_fault(fault) for fault in faults[:TOLD])
    more = f"; and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
    if any(fault["loc"][:1] != ("status",) for fault in faults):
        what = (
            "this release cannot read it: correct the spec, or go back to the release that took it. What runs, runs on"
        )
        return reasons.INVALID_SPEC, f"{told}{more}; {what}"
    what = "another release wrote this status: go back to that one, or to a later one. What runs, runs on"
    return reasons.INVALID_STATUS, f"{told}{more}; {what}"


def _fault(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{place}: there is no such field"
    if fault["type"] == "missing":
        return f"{place}: is missing and required"
    return f"{place}: {fault['msg']}, found {cut(repr(fault['input']), FOUND_LIMIT)}"


def status_of(obj: Obj, error: ValidationError, now: datetime) -> Obj:
    """The status with Stalled in it, camelCase; that of a job that has ended stays, whatever its spec looks like."""
    status = obj.get("status") or {}
    stored = [item for item in status.get("conditions") or () if isinstance(item, dict)]
    ended = (conditions.COMPLETE, conditions.FAILED)
    if any(item.get("type") in ended and item.get("status") == "True" for item in stored):
        return status
    reason, message = words_of(error)
    wanted = [Wanted(conditions.READY, False, reason, message), Wanted(conditions.STALLED, True, reason, message)]
    generation = int(obj["metadata"].get("generation", 0))
    told = [item.to_dict() for item in conditions.merge(readable(status), wanted, generation, now)]
    others = [item for item in stored if item.get("type") not in OURS]
    return status | {"observedGeneration": generation, "conditions": [*told, *others]}


def readable(status: Obj) -> Sequence[Condition]:
    """The conditions of a raw status, but for those that are none to this release."""
    found = []
    for item in status.get("conditions") or ():
        try:
            found.append(Condition.model_validate(item))
        except ValidationError:
            continue
    return found
