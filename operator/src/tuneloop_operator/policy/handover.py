"""How a new version of an adapter takes over without a canary: make before break.

The version that serves stays listed, for servers and gateways, until every ready pod answers the new one; then it stays
loaded for ``LINGER_SECONDS``. A version that does not load never takes over. Each adapter by itself, any number at
once; decided anew at each look by the status, adapters.json and what the pods say. Never keeps anything. Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.serving import Adapter, AdapterList, AdapterState, ServerStatus
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.adapters import Resolved
from tuneloop_operator.policy.bases import as_before, comparable
from tuneloop_operator.policy.candidates import Need, unfit
from tuneloop_operator.policy.conditions import cut, parse_time
from tuneloop_operator.policy.versions import LINGER_SECONDS, short

WORDS_LIMIT: Final = 600  # characters of the engine's own words, so that what to do next is never cut


@dataclass(frozen=True)
class Told:
    """What the server pods that load these adapters say of themselves."""

    ready: Sequence[ServerStatus | None] = ()  # of each ready pod; None: it has not answered
    others: Sequence[ServerStatus] = ()

    def of(self, engine_name: str) -> list[AdapterState]:
        """The state of one version in each ready pod that knows it."""
        return [state for pod in self.ready if pod is not None for state in _of(pod, engine_name)]

    def everywhere(self, engine_name: str) -> bool:
        """Whether every ready pod, of at least one, answers with this version."""
        return bool(self.ready) and sum(state.answers for state in self.of(engine_name)) == len(self.ready)

    def anywhere(self, engine_name: str) -> bool:
        """Whether some pod answers with this version; a ready one that has not told may."""
        pods = (*self.ready, *self.others)
        return any(pod is None or any(state.answers for state in _of(pod, engine_name)) for pod in pods)


def _of(pod: ServerStatus, engine_name: str) -> list[AdapterState]:
    return [state for state in pod.adapters if state.engine_name == engine_name]


# ---- which version serves ------------------------------------------------------------------------------------------


def serving(resolved: Iterable[Resolved], known: Iterable[AdapterStatus], told: Told, need: Need) -> list[Resolved]:
    """Each adapter with the version that serves; ``known`` is the status so far, ``need`` what its pods can load."""
    before = {status.name: status for status in known if status.engine_name}
    return [_serving(item, before.get(item.name), told, need) for item in resolved]


def _serving(item: Resolved, before: AdapterStatus | None, told: Told, need: Need) -> Resolved:
    if before is None or item.digest in ("", before.digest) or unfit(before.base, before.rank, need):
        return item
    if item.wire is None or _takes_over(item.wire.engine_name, before, told):
        return item
    return _beside(as_before(item, before), item.wire, before, told)


def _takes_over(new: str, before: AdapterStatus, told: Told) -> bool:
    """Once it is everywhere; at once where nothing is lost, as at zero replicas, unless it is known not to load."""
    return told.everywhere(new) or not (told.anywhere(before.engine_name) or _has_failed(new, before))


def _has_failed(new: str, before: AdapterStatus) -> bool:
    return before.next_engine_name == new and before.reason == reasons.ADAPTER_FAILED


def _beside(old: Resolved, new: Adapter, before: AdapterStatus, told: Told) -> Resolved:
    """The old version, with how far the new one is."""
    name, said = new.engine_name, told.of(new.engine_name)
    failed = [state.message for state in said if state.state == "Failed"]
    if failed:
        return _failed(old, new, _did_not_load(old, new, failed[0]))
    if not said and _has_failed(name, before):  # no pod is there to ask: what is known of it stays known
        return _failed(old, new, before.message)
    loaded = sum(state.answers for state in said)
    words = (
        f"adapter {old.name}: version {short(new.digest)} is loaded beside {short(old.digest)}, which serves: {loaded} "
        f"of {len(told.ready)} ready pods have it"
    )
    message = "; ".join(part for part in (words, old.message) if part)
    return replace(old, reason=reasons.ADAPTERS_LOADING, message=message, next=name)


def _failed(old: Resolved, new: Adapter, message: str) -> Resolved:
    return replace(old, reason=reasons.ADAPTER_FAILED, message=message, stalled=True, next=new.engine_name)


def _did_not_load(old: Resolved, new: Adapter, words: str) -> str:
    return (
        f"adapter {old.name}: version {short(new.digest)} did not load: {cut(words, WORDS_LIMIT)}{old.still}. It takes "
        "over by itself once every ready pod has it; else name another version in spec.adapters"
    )


# ---- what is loaded ------------------------------------------------------------------------------------------------


def listed(
    serve: Sequence[Resolved],
    resolved: Sequence[Resolved],
    known: Iterable[AdapterStatus],
    there: AdapterList,
    now: datetime,
) -> tuple[AdapterList, bool]:
    """adapters.json (``there``: as it is): what serves, what is to take over, and for a while what did before.

    The second says whether anything is listed for that while alone.
    """
    wires = {wire.engine_name: wire for item in (*serve, *resolved) if (wire := item.wire) is not None}
    names = _lingering(serve, known, now)
    lingering = [wire for wire in there.adapters if wire.name in names and wire.engine_name not in wires]
    return AdapterList(adapters=[*wires.values(), *lingering]), bool(lingering)


def _lingering(serve: Iterable[Resolved], known: Iterable[AdapterStatus], now: datetime) -> set[str]:
    """Adapters of which a new version took over so lately that gateways may still ask for the old one."""
    before = {status.name: status for status in known if status.engine_name}
    return {item.name for item in serve if item.wire and item.name in before and _lingers(item, before[item.name], now)}


def _lingers(item: Resolved, before: AdapterStatus, now: datetime) -> bool:
    if before.digest != item.digest:  # it takes over now
        return comparable(before, item)
    return before.since is not None and (now - parse_time(before.since)).total_seconds() < LINGER_SECONDS
