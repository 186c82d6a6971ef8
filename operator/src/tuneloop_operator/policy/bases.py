"""Adapters while the base model itself changes: what serves goes on, and each revision gets those of its own base.

Another commit of one repository has equal shapes: an adapter of the old base loads on the new one, and answers
wrongly. So the revision that serves keeps what it has until the one with the new base takes over, and nothing that was
made for the new base reaches it. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.serving import AdapterList
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.adapters import Resolved, wanted_list
from tuneloop_operator.policy.candidates import base_misfit
from tuneloop_operator.policy.revisions import BASE_ANNOTATION, annotation

Obj = dict[str, Any]


@dataclass(frozen=True)
class Arriving:
    """The revision with the new base, and the adapters that its pods load."""

    revision: str  # rN
    adapters: AdapterList

    @property
    def engine_names(self) -> Mapping[str, str]:
        """Each adapter's version there, by its name."""
        return {each.name: each.engine_name for each in self.adapters.adapters}


def serving_base(found: Mapping[int, Obj], others: Iterable[int], wanted: str) -> str:
    """The base that still serves where it is not the wanted one ("": not known yet), else empty.

    ``others`` are the revisions that stay for now beside the wanted one; the newest that answers serves.
    """
    order = sorted(others, key=lambda number: (_answers(found[number]), number))
    base = annotation(found[order[-1]], BASE_ANNOTATION) if order else ""
    return base if base and (not wanted or base_misfit(base, wanted)) else ""


def _answers(found: Obj) -> bool:
    return int((found.get("status") or {}).get("readyReplicas", 0)) > 0


def held(resolved: Sequence[Resolved], deployment: ModelDeployment, base: str) -> list[Resolved]:
    """What serves on this base until another takes its place; without a base, all as it is wanted."""
    if not base:
        return list(resolved)
    before = {status.name: status for status in deployment.status.adapters if status.engine_name}
    return [_held(item, before.get(item.name), base) for item in resolved]


def _held(item: Resolved, before: AdapterStatus | None, base: str) -> Resolved:
    if before is not None and not base_misfit(before.base, base):
        return replace(as_before(item, before), refused=False)
    if item.wire is not None and base_misfit(item.base, base):
        words = f"adapter {item.name}: made for {item.base}; it is served when that base is"
        return replace(item, refused=True, reason=item.reason or reasons.ROLLING_OUT, message=item.message or words)
    return item


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


def arriving(revision: str, resolved: Sequence[Resolved], base: str, wanted: str) -> Arriving | None:
    """What the revision with the wanted base loads, while another base serves; None while its model is fetched."""
    return Arriving(revision, wanted_list(resolved)) if base and wanted else None


def comparable(before: AdapterStatus, item: Resolved) -> bool:
    """Whether a version can take another's place by itself: one of another base comes with that base's revision."""
    return not base_misfit(before.base, item.base)
