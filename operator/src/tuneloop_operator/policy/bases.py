"""Adapters while the base model or ``engine.lora.maxRank`` changes: what serves goes on, each revision gets its own.

Another commit of one repository has equal shapes: an adapter of the old base loads on the new one, and answers
wrongly. So the revision that serves keeps what it has until the one with the new base takes over, and nothing that was
made for the new base reaches it. Equally for ranks: a wide adapter is served until the engine that has no room for it
takes over, and one too wide for the engine that serves waits for the one that has. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.serving import AdapterList
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.adapters import Resolved, wanted_list
from tuneloop_operator.policy.candidates import Need, base_misfit, unfit
from tuneloop_operator.policy.revisions import BASE_ANNOTATION, MAX_RANK_ANNOTATION, annotation

Obj = dict[str, Any]


@dataclass(frozen=True)
class Arriving:
    """The revision that takes other adapters than the one that serves, and those that its pods load."""

    revision: str  # rN
    adapters: AdapterList

    @property
    def engine_names(self) -> Mapping[str, str]:
        """Each adapter's version there, by its name."""
        return {each.name: each.engine_name for each in self.adapters.adapters}


@dataclass(frozen=True)
class Turn:
    """What adapters must fit on the revision that still serves, and on the one that is wanted, where these differ."""

    old: Need
    new: Need

    def carries_over(self, version: Resolved) -> bool:
        """Whether what serves can be served by the new revision too; of an unknown base only where both have one."""
        known = bool(version.base) or self.old.base == self.new.base
        return version.wire is not None and known and not unfit(version.base, version.rank, self.new)

    @property
    def back(self) -> "Turn":
        """The other way round."""
        return Turn(self.new, self.old)

    def takes_everywhere(self, version: Resolved) -> bool:
        """Whether a version that is wanted goes its own way: it fits both revisions, which have one base."""
        same = self.old.base == self.new.base
        return same and self.carries_over(version) and not unfit(version.base, version.rank, self.old)


def turn_of(found: Mapping[int, Obj], others: Iterable[int], wanted: Need) -> Turn | None:
    """From the revision that serves to the wanted one; None where both take the same adapters.

    ``others`` are the revisions that stay for now beside the wanted one; the newest that answers serves. The wanted
    base is empty while it is not known yet.
    """
    order = sorted(others, key=lambda number: (_answers(found[number]), number))
    old = need_of(found[order[-1]], wanted) if order else None
    if old is None:
        return None
    same = wanted.base and not base_misfit(old.base, wanted.base) and old.max_rank == wanted.max_rank
    return None if same else Turn(old, wanted)


def need_of(found: Obj, wanted: Need) -> Need | None:
    """What adapters must fit on a revision by its Deployment; None where an earlier operator recorded nothing."""
    base = annotation(found, BASE_ANNOTATION)
    return Need(base, int(annotation(found, MAX_RANK_ANNOTATION) or wanted.max_rank)) if base else None


def _answers(found: Obj) -> bool:
    return int((found.get("status") or {}).get("readyReplicas", 0)) > 0


def held(resolved: Sequence[Resolved], deployment: ModelDeployment, turn: Turn | None) -> list[Resolved]:
    """What serves on the old revision until the new one takes its place; without a turn, all as it is wanted."""
    if turn is None:
        return list(resolved)
    before = {status.name: status for status in deployment.status.adapters if status.engine_name}
    return [item if turn.takes_everywhere(item) else _held(item, before.get(item.name), turn.old) for item in resolved]


def _held(item: Resolved, before: AdapterStatus | None, old: Need) -> Resolved:
    if before is not None and not unfit(before.base, before.rank, old):
        return replace(as_before(item, before), refused=False)
    if item.wire is not None and unfit(item.base, item.rank, old):
        message = item.message or f"adapter {item.name}: {_not_yet(item, old)}"
        return replace(item, refused=True, reason=item.reason or reasons.ROLLING_OUT, message=message)
    return item


def _not_yet(item: Resolved, old: Need) -> str:
    """Why a version waits for the revision that it fits."""
    if base_misfit(item.base, old.base):
        return f"made for {item.base}; it is served when that base is"
    return (
        f"has rank {item.rank}, and what serves was started with engine.lora.maxRank {old.max_rank}; it is served "
        "when the new revision is"
    )


def as_before(item: Resolved, before: AdapterStatus) -> Resolved:
    """The version that serves, with where it came from; the words stay those about the wanted one."""
    return replace(
        item,
        digest=before.digest,
        path=before.path,
        source=before.source,
        base=before.base,
        rank=before.rank,
        job=before.job,
        job_created=before.job_created or "",
    )


def arriving(
    revision: str, resolved: Sequence[Resolved], serve: Sequence[Resolved], turn: Turn | None
) -> Arriving | None:
    """What the new revision loads while the old one serves; None while its model is fetched.

    The version that serves, where it fits both: a newer one takes its place by its own rollout, in all pods.
    """
    if turn is None or not turn.new.base:
        return None
    both = zip(resolved, serve, strict=True)
    return Arriving(revision, wanted_list(old if turn.carries_over(old) else item for item, old in both))


def leaving(revision: str, serve: Sequence[Resolved], turn: Turn | None) -> Arriving | None:
    """What a revision keeps that the spec was set back from, while it is not gone yet: of what serves, what fits it."""
    return Arriving(revision, wanted_list(filter(turn.carries_over, serve))) if turn else None


def comparable(before: AdapterStatus, item: Resolved) -> bool:
    """Whether a version can take another's place by itself: one of another base comes with that base's revision."""
    return not base_misfit(before.base, item.base)
