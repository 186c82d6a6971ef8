"""Which versions of a ModelDeployment there are now: the one wanted, the one that serves, those that were rolled back.

One rollout at a time: the revision first, then the adapters in the order of the spec; the others wait with the version
that they have. Pure; the steps of a rollout are ``policy.rollout``'s.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.api.rollout import RejectedVersion, Rollout, RolloutStatus
from tuneloop_core.constants import GROUP
from tuneloop_core.serving import Adapter, AdapterList
from tuneloop_operator.policy import rollout
from tuneloop_operator.policy.adapters import Resolved
from tuneloop_operator.policy.bases import as_before, comparable
from tuneloop_operator.policy.conditions import cut, parse_time, timestamp
from tuneloop_operator.policy.digests import digest
from tuneloop_operator.policy.rollout import ENDED, Orders, Version

PROMOTE: Final = f"{GROUP}/promote"
ROLLBACK: Final = f"{GROUP}/rollback"
REJECTED_KEPT: Final = 32
LINGER_SECONDS: Final = 15.0
"""How long the version that takes no traffic any more stays loaded: the gateways must have heard of it first."""

NOT_WANTED: Final = "it is no longer wanted in its place"


@dataclass(frozen=True)
class Pair:
    """A version that serves and one that is wanted in its place."""

    stable: Version
    canary: Version


@dataclass(frozen=True)
class Choice:
    """What is rolled out now, what waits for it, and what was rolled back before and is still wanted."""

    pair: Pair | None = None
    waiting: tuple[Pair, ...] = ()
    refused: tuple[RejectedVersion, ...] = ()

    def waits(self) -> "Choice":
        """Nothing is rolled out for now."""
        return replace(self, pair=None, waiting=(self.pair, *self.waiting) if self.pair else self.waiting)


def canary_spec(deployment: ModelDeployment) -> Rollout | None:
    """The rollout block where its strategy is Canary."""
    asked = deployment.spec.rollout
    return asked if asked is not None and asked.strategy == "Canary" else None


def orders(deployment: ModelDeployment) -> Orders:
    """What people ask for by hand."""
    notes, asked = deployment.metadata.annotations, deployment.spec.rollout
    return Orders(bool(asked and asked.pause), notes.get(PROMOTE, ""), notes.get(ROLLBACK, ""))


def short(digest: str) -> str:
    """What people name a version of an adapter: the first 12 digits of its digest."""
    return digest.removeprefix("sha256:")[:12]


def adapter_pairs(resolved: Iterable[Resolved], deployment: ModelDeployment) -> list[Pair]:
    """Adapters that have a version which serves and another one that is wanted."""
    before = [(item, _serves(item, deployment)) for item in resolved if item.wire]
    return [
        Pair(_adapter(item.name, there.digest), _adapter(item.name, item.digest))
        for item, there in before
        if there is not None and there.digest != item.digest and comparable(there, item)
    ]


def _serves(item: Resolved, deployment: ModelDeployment) -> AdapterStatus | None:
    """The version that a wanted one is compared with: not one that does not fit, or that no pod could load.

    That may also be one that fails in a pod that starts anew. For that moment what has a share beside it, or was
    rolled back for it, must not get all of its traffic; any other version may take its place at once.
    """
    found = next((each for each in deployment.status.adapters if each.name == item.name and each.engine_name), None)
    if found is None or found.state != "Failed" or found.ready_replicas:
        return found
    return found if _has_share(found, deployment) or _was_rolled_back(item, deployment) else None


def _has_share(stable: AdapterStatus, deployment: ModelDeployment) -> bool:
    """Whether another version is being measured against this one."""
    status = deployment.status.rollout
    if status is None or status.phase in ENDED:
        return False
    return (status.kind, status.name, status.stable) == ("Adapter", stable.name, short(stable.digest))


def _was_rolled_back(item: Resolved, deployment: ModelDeployment) -> bool:
    """Whether this very version was, also where it is asked for in another way now."""
    wanted = ("Adapter", item.name, item.digest)
    return any((no.kind, no.name, no.key) == wanted for no in deployment.status.rejected)


def _adapter(name: str, digest: str) -> Version:
    return Version("Adapter", name, short(digest), digest)


def choose(deployment: ModelDeployment, pairs: Sequence[Pair]) -> Choice:
    """What is rolled out now: what was, else the first that was not rolled back before."""
    refused = [(pair, _rejection(deployment, pair.canary)) for pair in pairs]
    open_pairs = [pair for pair, no in refused if no is None or _is_forced(deployment, no)]
    status = deployment.status.rollout
    running = [pair for pair in open_pairs if rollout.is_of(status, pair.stable, pair.canary)]
    chosen = next(iter([*running, *open_pairs]), None)
    return Choice(
        chosen,
        tuple(pair for pair in open_pairs if pair is not chosen),
        tuple(no for pair, no in refused if no is not None and pair not in open_pairs),
    )


def _is_forced(deployment: ModelDeployment, no: RejectedVersion) -> bool:
    """Whether a version that was rolled back is promoted by hand; what did not load would not load now either."""
    asked = orders(deployment)
    return asked.promote == no.version != asked.rollback and no.reason != rollout.LOAD_FAILED


def leaving(
    deployment: ModelDeployment, resolved: Sequence[Resolved], pairs: Sequence[Pair], now: datetime
) -> RolloutStatus | None:
    """The rollout of an adapter that ends now, or has just ended: nothing else begins before the gateways know.

    ``loaded`` keeps by this status what they may still ask for. None where there is none, or it goes on; also where the
    adapter is served no more: then nobody asks.
    """
    status = deployment.status.rollout
    if status is None or status.kind != "Adapter":
        return None
    if status.phase in ENDED:
        return status if lingers(status, now) else None
    wanted = any(rollout.is_of(status, pair.stable, pair.canary) for pair in pairs)
    served = {item.name: short(item.digest) for item in serving(resolved, deployment, None) if item.wire}
    back = not wanted and served.get(status.name) == status.stable
    return rollout.withdrawn(status, NOT_WANTED, now) if back else None


def state_of(deployment: ModelDeployment, pair: Pair, now: datetime) -> RolloutStatus:
    """Where the rollout of a pair is; a new one, or one that is tried again, begins."""
    status = deployment.status.rollout
    if status is None or status.phase in ENDED or not rollout.is_of(status, pair.stable, pair.canary):
        return rollout.begin(pair.stable, pair.canary, now)
    return status


def _rejection(deployment: ModelDeployment, version: Version) -> RejectedVersion | None:
    wanted = (version.kind, version.name, version.key, spec_digest(deployment, version))
    return next((no for no in deployment.status.rejected if (no.kind, no.name, no.key, no.spec) == wanted), None)


def rejected(
    deployment: ModelDeployment, version: Version, ended: RolloutStatus, now: datetime
) -> list[RejectedVersion]:
    """The memory with one more, newest first."""
    entry = RejectedVersion(
        kind=version.kind,
        name=version.name,
        version=version.id,
        key=version.key,
        spec=spec_digest(deployment, version),
        reason=ended.reason,
        message=cut(ended.message, 500),
        time=timestamp(now),
    )
    others = [
        no for no in deployment.status.rejected if (no.kind, no.name, no.key) != (entry.kind, entry.name, entry.key)
    ]
    return [entry, *others][:REJECTED_KEPT]


def remembered(deployment: ModelDeployment) -> list[RejectedVersion]:
    """The memory without adapters that are no longer in the spec."""
    names = {adapter.name for adapter in deployment.spec.adapters} | {deployment.metadata.name}
    return [no for no in deployment.status.rejected if no.name in names]


def spec_digest(deployment: ModelDeployment, version: Version) -> str:
    """Digest of what asks for a version, and how: when it changes, a version that was rolled back is tried again."""
    asked = deployment.spec.rollout
    source = [each.without_defaults() for each in deployment.spec.adapters if each.name == version.name]
    return digest(
        {"source": source, "rollout": asked.model_copy(update={"pause": False}).without_defaults() if asked else None}
    )


def serving(resolved: Iterable[Resolved], deployment: ModelDeployment, promoted: Pair | None) -> list[Resolved]:
    """Each adapter with the version that serves: the one before until a rollout's end, the wanted one otherwise."""
    done = promoted.canary if promoted else None
    return [
        item if done and (done.kind, done.name) == ("Adapter", item.name) else _until_then(item, deployment)
        for item in resolved
    ]


def _until_then(item: Resolved, deployment: ModelDeployment) -> Resolved:
    """The version before, where there is one that this one could be compared with."""
    before = _serves(item, deployment)
    return as_before(item, before) if before and item.digest and comparable(before, item) else item


def loaded(
    serve: Sequence[Resolved], canary: Adapter | None, there: AdapterList, status: RolloutStatus | None, now: datetime
) -> AdapterList:
    """adapters.json: what serves, the canary beside it, and for a while the one that just stopped to take traffic."""
    wires = {wire.engine_name: wire for item in serve if (wire := item.wire) is not None}
    if canary is not None:
        wires.setdefault(canary.engine_name, canary)
    if status is not None and lingers(status, now) and status.kind == "Adapter":
        names = {f"{status.name}@{status.stable}", f"{status.name}@{status.canary}"}
        for wire in there.adapters:
            if wire.engine_name in names:
                wires.setdefault(wire.engine_name, wire)
    return AdapterList(adapters=list(wires.values()))


def lingers(status: RolloutStatus, now: datetime) -> bool:
    """Whether a rollout has ended so lately that gateways may still send requests to the version that lost."""
    return status.phase in ENDED and (now - parse_time(status.since)).total_seconds() < LINGER_SECONDS


def unknown_orders(deployment: ModelDeployment, pairs: Sequence[Pair], serve: Sequence[Resolved]) -> str:
    """Words about an annotation that names a version which is not there; empty where they are right."""
    asked, canaries = orders(deployment), [pair.canary.id for pair in pairs]
    known = {*canaries, *(no.version for no in deployment.status.rejected)}
    known |= {short(item.digest) for item in serve if item.digest}
    known |= {revision.name for revision in deployment.status.revisions}
    wrong = {PROMOTE: asked.promote, ROLLBACK: asked.rollback}
    found = [f"{name} names {value!r}" for name, value in wrong.items() if value and value not in known]
    if not found:
        return ""
    there = (
        f"versions that wait or take a share now: {', '.join(canaries)}" if canaries else "no rollout is in progress"
    )
    return f"annotation {' and '.join(found)}, which is no version here; {there}"
