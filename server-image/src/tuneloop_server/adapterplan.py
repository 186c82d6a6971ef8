"""Which adapters to load, to retry and to unload now: the decision alone, without clock, file or engine."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from tuneloop_core.serving import Adapter, AdapterList, AdapterState

State = Literal["Loading", "Loaded", "Failed", "Unloading"]

RETRY_SECONDS: Final = (1.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Between tries of an adapter whose folder is missing or that the engine failed to load; the last one repeats."""

MISSING_LIMIT: Final = 60.0
"""Seconds after which a missing folder counts as failed, so that one bad adapter never keeps a pod from serving."""

POKE_HOLD: Final = 180.0
"""Seconds for which a list that came with a poke outranks an older file: the kubelet syncs a ConfigMap that late."""


@dataclass(frozen=True)
class Record:
    """One adapter in this engine. Times are monotonic seconds."""

    adapter: Adapter
    since: float
    state: State = "Loading"
    message: str = ""
    tries: int = 0
    retry_at: float | None = 0.0  # None: never again for this digest

    @property
    def name(self) -> str:
        """The name in the engine."""
        return self.adapter.engine_name

    def shown(self, *, parked: bool = False) -> AdapterState:
        """As the status tells it; ``parked`` is only asked of a loaded one."""
        state: Literal["Loading", "Loaded", "Parked", "Failed", "Unloading"] = self.state
        if parked and state == "Loaded":
            state = "Parked"
        return AdapterState(engine_name=self.name, state=state, message=self.message[:1000])


@dataclass(frozen=True)
class Plan:
    """What to do now, in this order."""

    unload: tuple[Record, ...]
    load: tuple[Record, ...]


def plan(desired: Iterable[Adapter], records: Mapping[str, Record], now: float) -> Plan:
    """Compare what should be with what is; names that come back while unloading are loaded anew."""
    wanted = {adapter.engine_name: adapter for adapter in desired}
    unload = tuple(record for name, record in records.items() if name not in wanted and record.state != "Unloading")
    load = []
    for name, adapter in wanted.items():
        record = records.get(name)
        if record is None or record.state == "Unloading":
            load.append(Record(adapter, since=now))
        elif record.state != "Loaded" and record.retry_at is not None and record.retry_at <= now:
            load.append(record)
    return Plan(unload, tuple(load))


def loaded(record: Record) -> Record:
    """The engine has it."""
    return replace(record, state="Loaded", message="", retry_at=None)


def refused(record: Record, message: str) -> Record:
    """It will never load."""
    return replace(record, state="Failed", message=message, retry_at=None)


def missing(record: Record, message: str, now: float) -> Record:
    """Not in the store yet; Failed after a while, but looked for ever after."""
    state: State = "Failed" if now - record.since >= MISSING_LIMIT else "Loading"
    return _again(replace(record, state=state, message=message), now)


def failed(record: Record, message: str, now: float) -> Record:
    """The engine could not load it; that may pass (memory), so it is tried again."""
    return _again(replace(record, state="Failed", message=message), now)


def _again(record: Record, now: float) -> Record:
    wait = RETRY_SECONDS[min(record.tries, len(RETRY_SECONDS) - 1)]
    return replace(record, tries=record.tries + 1, retry_at=now + wait)


@dataclass(frozen=True)
class Desired:
    """The list in force: the file's, or a poke's while the file lags behind it."""

    file: AdapterList = field(default_factory=AdapterList)
    poke: AdapterList | None = None
    poke_until: float = 0.0

    def with_file(self, content: AdapterList) -> "Desired":
        """The file was read; when it has caught up with the poke, the poke is forgotten."""
        return replace(self, file=content, poke=None if content == self.poke else self.poke)

    def with_poke(self, content: AdapterList, now: float) -> "Desired":
        """A poke brought the list."""
        return replace(self, poke=None if content == self.file else content, poke_until=now + POKE_HOLD)

    def at(self, now: float) -> list[Adapter]:
        """What should be loaded now."""
        return (self.poke if self.poke is not None and now < self.poke_until else self.file).adapters
