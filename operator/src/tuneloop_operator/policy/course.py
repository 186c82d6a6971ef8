"""What a rollout makes of one look: what each name answers with, what the gateways split by, and the words for people.

Pure.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tuneloop_core.api.modeldeployment_status import ServedName
from tuneloop_core.api.rollout import CanaryArm, RejectedVersion, RolloutStatus
from tuneloop_core.serving import AdapterList
from tuneloop_operator.policy import conditions
from tuneloop_operator.policy.actions import Note
from tuneloop_operator.policy.adapters import Resolved
from tuneloop_operator.policy.bases import Arriving
from tuneloop_operator.policy.conditions import Wanted
from tuneloop_operator.policy.revisions import Chosen
from tuneloop_operator.policy.rollout import ENDED, WITHDRAWN

PROGRESSING: Final = "Progressing"
BY_HAND: Final = "RolloutByHand"
UNKNOWN_VERSION: Final = "UnknownVersion"
ROLLED_BACK: Final = "RolledBack"
REASONS: Final = {"Loading": "Canary", "Canary": "Canary", "Promoting": "Canary", "Paused": "CanaryPaused",
                  "Held": "CanaryHeld", "Promoted": "Promoted", "RolledBack": ROLLED_BACK}  # fmt: skip


@dataclass(frozen=True)
class Course:
    """The outcome of one look; ``sizes`` (pods by revision) is None where no revision succeeds another."""

    serve: Sequence[Resolved] = ()
    adapters: AdapterList = field(default_factory=AdapterList)
    arriving: Arriving | None = None  # the revision whose pods load others: one that comes, or that is taken back
    chosen: Chosen | None = None
    sizes: Mapping[int, int] | None = None
    serving: str = ""  # rN: the revision that serves while another is to succeed it; empty: the wanted one
    status: RolloutStatus | None = None
    rejected: Sequence[RejectedVersion] = ()
    refused: Sequence[RejectedVersion] = ()  # of them, those that are still wanted
    waiting: Sequence[str] = ()
    wrong_order: str = ""
    look_again: float | None = None

    def judged(self, numbers: Collection[int]) -> int | None:
        """Of these revisions the one to judge readiness by: the one that serves, else the wanted, else the newest.

        The wanted one is the newest, but for a spec that came back.
        """
        order = [int(self.serving[1:])] if self.serving else []
        order += [self.chosen.number] if self.chosen else []
        return next((number for number in order if number in numbers), max(numbers, default=None))

    def adapters_of(self, revision: str) -> AdapterList:
        """What the pods of this revision (rN) load."""
        there = self.arriving
        return there.adapters if there is not None and there.revision == revision else self.adapters


def with_canary(models: Sequence[ServedName], course: Course) -> list[ServedName]:
    """Each name with the share of its new version."""
    both = bool(course.sizes and len(course.sizes) > 1)  # two revisions have pods
    return [model.model_copy(update={"canary": _arm(model, course, both=both)}) for model in models]


def _arm(model: ServedName, course: Course, *, both: bool) -> CanaryArm | None:
    status = course.status
    if status is None:
        return None
    if status.kind == "Revision":
        # Pods of a revision that was rolled back may outlive its Deployment: they get nothing.
        shown = both or status.phase != "Promoted"
        return _revision_arm(model, course.arriving, status) if shown else None
    if status.name != model.name or status.phase in ENDED:
        return None
    return CanaryArm(engine_name=f"{status.name}@{status.canary}", weight=status.weight)


def _revision_arm(model: ServedName, arriving: Arriving | None, status: RolloutStatus) -> CanaryArm:
    """An adapter that the new base has no version of stays with the old one."""
    if arriving is None or model.kind != "Adapter":
        return CanaryArm(revision=status.canary, weight=status.weight)
    engine_name = arriving.engine_names.get(model.name, "")
    return CanaryArm(revision=status.canary, engine_name=engine_name, weight=status.weight if engine_name else 0)


def condition_of(course: Course, *, calm: bool) -> list[Wanted]:
    """Conditions of the rollout; ``calm``: nothing else is on the way or stalled."""
    found: list[Wanted] = []
    status = course.status
    running = status is not None and status.phase not in ENDED
    words = _words(course)
    if calm and course.refused:
        found.append(Wanted(conditions.STALLED, True, ROLLED_BACK, words))
    elif calm and running and status is not None:
        found.append(Wanted(conditions.RECONCILING, True, REASONS[status.phase], words))
    if status is not None:
        found.append(Wanted(PROGRESSING, running, REASONS[status.phase], words))
    if course.wrong_order:
        found.append(Wanted(BY_HAND, False, UNKNOWN_VERSION, course.wrong_order))
    return found


def _words(course: Course) -> str:
    status = course.status
    parts = [f"{no.name}: {no.message}. {_next(no)}" for no in course.refused]
    if status is not None and not (status.phase == ROLLED_BACK and course.refused):
        parts.insert(0, f"{status.name} {status.stable} to {status.canary}: {status.message}")
    parts += [f"{name} waits for that" for name in course.waiting]
    return "; ".join(parts)


def _next(no: RejectedVersion) -> str:
    return (
        "It is not tried again until the spec or the wanted version changes; to take it all the same, annotate "
        f"tuneloop.dev/promote={no.version} (kubectl annotate --overwrite: an earlier order stays)"
    )


def notes(before: RolloutStatus | None, now: RolloutStatus | None) -> list[Note]:
    """An Event for each step and each end."""
    if now is None or (before is not None and _point(before) == _point(now)):
        return []
    reason = {"Loading": "CanaryLoading", "Canary": "CanaryStep"}.get(now.phase, REASONS[now.phase])
    if now.reason == WITHDRAWN:  # by who changed the spec: nothing went wrong
        return [Note(WITHDRAWN, f"{now.name}: {now.message}")]
    return [Note(reason, f"{now.name}: {now.message}", warning=now.phase == ROLLED_BACK)]


def _point(status: RolloutStatus) -> tuple[str, str, str, int]:
    return status.name, status.canary, status.phase, status.step
