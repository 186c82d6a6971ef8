"""Keeps the engine's adapters as adapters.json says, at run time.

Level-triggered: each round reads the list, compares, acts. The file is looked at each second; a poke only makes the
next round come now. Never decides by itself (``adapterplan``), never touches a folder but to read it.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import Final, Protocol

from pydantic import ValidationError

from tuneloop_core.api.engine import EngineLoRA
from tuneloop_core.serving import AdapterList, AdapterState
from tuneloop_server import adapterplan
from tuneloop_server.adapterfolder import (
    AdapterMissingError,
    AdapterRefusedError,
    check_adapter,
    folder_of,
    is_complete,
)
from tuneloop_server.adapterplan import Desired, Record
from tuneloop_server.modelfolder import ModelFacts

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
SIDE_BY_SIDE: Final = 4  # adapters on their way at once


class AdapterError(Exception):
    """The engine did not load an adapter; its words."""


class AdapterEngine(Protocol):
    """What the engine must be able to do with adapters."""

    async def load_adapter(self, name: str, path: Path) -> None:
        """Load it and make its name known. Raises AdapterError."""

    async def hide_adapter(self, name: str) -> None:
        """Forget the name: new requests get 404, running ones go on."""

    async def drop_adapter(self, name: str) -> None:
        """Free its memory; only when nothing runs with it."""

    async def held_adapters(self) -> frozenset[str]:
        """Names whose weights are in memory; the engine drops the least recently used ones by itself."""

    def running(self, name: str) -> int:
        """Requests in flight with this adapter, hidden or not."""


class Adapters:
    """The adapters of this pod. One task calls ``run``; a round never overlaps another."""

    def __init__(self, file: Path, artifacts: Path, lora: EngineLoRA, model: ModelFacts) -> None:
        self._file = file
        self._artifacts = artifacts
        self._lora = lora
        self._model = model
        self._desired = Desired()
        self._stamp: tuple[int, int, int] | None = None
        self._records: dict[str, Record] = {}
        self._engine: AdapterEngine | None = None
        self._parked: frozenset[str] = frozenset()
        self._lock = asyncio.Lock()
        self._places = asyncio.Semaphore(SIDE_BY_SIDE)

    @property
    def settled(self) -> bool:
        """Every listed adapter is loaded or marked failed."""
        names = {adapter.engine_name for adapter in self._desired.at(time.monotonic())}
        known = {name for name, record in self._records.items() if record.state in ("Loaded", "Failed")}
        return self._engine is not None and names <= known

    def states(self) -> list[AdapterState]:
        """For the status: known ones, and those that wait for the engine."""
        waiting = [Record(adapter, since=0.0) for adapter in self._desired.at(time.monotonic())]
        records = {r.name: r for r in waiting} | self._records
        return [record.shown(parked=record.name in self._parked) for record in records.values()]

    def attach(self, engine: AdapterEngine) -> None:
        """The engine is up; rounds act from now on."""
        self._engine = engine

    def poke(self, content: AdapterList | None) -> None:
        """Take a list that came with a poke; ``round`` acts on it."""
        if content is not None:
            self._desired = self._desired.with_poke(content, time.monotonic())

    async def run(self) -> None:
        """Rounds until cancelled."""
        while True:
            await self.round()
            await asyncio.sleep(LOOK_SECONDS)

    async def round(self) -> None:
        """Read, compare, act once."""
        async with self._lock:
            self._read()
            if self._engine is not None:
                await self._act(self._engine)

    def _read(self) -> None:
        try:
            status = self._file.stat()
        except OSError:
            return  # the ConfigMap is being swapped, or has no adapters yet: what we have stays
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._desired = self._desired.with_file(AdapterList.model_validate_json(self._file.read_bytes()))
        except (OSError, ValidationError) as error:
            log.error("%s is not usable, so the list before stays in force: %s", self._file, error)  # noqa: TRY400

    async def _act(self, engine: AdapterEngine) -> None:
        now = time.monotonic()
        todo = adapterplan.plan(self._desired.at(now), self._records, now)
        for record in todo.unload:
            await self._hide(engine, record)
        self._records |= {record.name: record for record in todo.load}
        await asyncio.gather(*(self._load_one(engine, record) for record in todo.load))
        for name, record in list(self._records.items()):
            if record.state == "Unloading" and not engine.running(name):
                await engine.drop_adapter(name)
                del self._records[name]
        await self._look_after_parked(engine)

    async def _look_after_parked(self, engine: AdapterEngine) -> None:
        """With more adapters than memory holds: note which are parked, and hide those that could not come back.

        The engine reads a parked adapter inside its own step, where a folder that is gone would end it for everybody.
        """
        loaded = [record for record in self._records.values() if record.state == "Loaded"]
        if len(loaded) <= self._lora.max_cached:
            self._parked = frozenset()
            return
        for record in await asyncio.to_thread(self._vanished, loaded):
            log.warning("adapter %s: its folder left the store", record.name)
            await engine.hide_adapter(record.name)
            words = "its folder left the store, so it could not come back once parked; publish it again"
            self._records[record.name] = adapterplan.missing(record, words, time.monotonic())
        held = await engine.held_adapters()
        self._parked = frozenset(record.name for record in loaded if record.name not in held)

    def _vanished(self, records: list[Record]) -> list[Record]:
        return [record for record in records if not is_complete(folder_of(record.adapter, self._artifacts))]

    async def _load_one(self, engine: AdapterEngine, record: Record) -> None:
        """Side by side with others: one is read from the store while another is taken in by the engine."""
        async with self._places:
            self._records[record.name] = await self._load(engine, record)

    async def _load(self, engine: AdapterEngine, record: Record) -> Record:
        began = time.monotonic()
        try:
            folder = folder_of(record.adapter, self._artifacts)
            await asyncio.to_thread(check_adapter, folder, record.adapter.digest, self._lora.max_rank, self._model)
            await engine.load_adapter(record.name, folder)
        except AdapterMissingError as error:
            return adapterplan.missing(record, str(error), time.monotonic())
        except AdapterRefusedError as error:
            log.warning("adapter %s is refused: %s", record.name, error)
            return adapterplan.refused(record, str(error))
        except AdapterError as error:
            log.warning("adapter %s did not load: %s", record.name, error)
            return adapterplan.failed(record, str(error), time.monotonic())
        log.info("adapter %s loaded in %.3f s", record.name, time.monotonic() - began)
        return adapterplan.loaded(record)

    async def _hide(self, engine: AdapterEngine, record: Record) -> None:
        if record.state != "Loaded":
            del self._records[record.name]
            return
        await engine.hide_adapter(record.name)
        self._records[record.name] = Record(record.adapter, record.since, "Unloading", retry_at=None)
