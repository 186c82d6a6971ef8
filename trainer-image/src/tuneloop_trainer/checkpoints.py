"""Checkpoints: everything that training needs to go on, in folders that are whole or not there.

A checkpoint is a safetensors file (weights, optimizer, gradients summed so far) and a JSON file (position, counts,
curve), sealed by a digest. One that does not match its digest is passed over for the one before. No pickle is written
or read.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pydantic
import torch
from tuneloop_core.api.base import SpecModel
from tuneloop_core.stages import Notice, Wire

from tuneloop_trainer.early import Look
from tuneloop_trainer.fence import Fence
from tuneloop_trainer.files import folder_aside, is_whole, remove_asides, seal, write_atomic
from tuneloop_trainer.sharding import Part, together
from tuneloop_trainer.stage import input_digest
from tuneloop_trainer.tensorfile import StoredTensors, write_tensors

log = logging.getLogger("tuneloop")

WEIGHTS = "state.safetensors"


class TrainingState(Wire):
    """Where training is. ``microbatch`` packs of step ``step`` are already in the gradients."""

    input_digest: str
    step: int = 0
    microbatch: int = 0
    capacity: int = 0  # tokens a pack; a position within a step is only good for the same
    optimizer_steps: int = 0
    step_loss: float = 0.0  # of the unfinished step: summed loss over its trained tokens
    tokens: int = 0
    seconds: float = 0.0
    resumes: int = 0
    last_loss: float | None = None
    curve: list[tuple[int, float]] = []
    looks: list[Look] = []  # at the held-out loss, for early stopping
    notices: list[Notice] = []

    @property
    def position(self) -> tuple[int, int]:
        """Order of checkpoints."""
        return self.step, self.microbatch


class Found(Wire):
    """What was found at the start; ``names`` are the tensors of the checkpoint that was loaded."""

    last_step: int | None
    last_time: str | None
    damaged: list[str]
    loaded: str
    state: TrainingState | None = None
    names: list[str] = []


def training_digest(*parts: SpecModel) -> str:
    """The digest of what decides the course of training; a checkpoint is only good for the same.

    Defaults are left out, so that a field which a later release adds does not make the checkpoints of a running job
    worthless; so are limits of time, which end training but do not change its course.
    """
    times = {"step_timeout", "max_duration"}
    chosen = [part.model_dump(mode="json", exclude_defaults=True, exclude=times) for part in parts]
    return input_digest(json.dumps(chosen, sort_keys=True))


class Checkpoints:
    """The checkpoints of one job, newest kept; ``load`` notes the name of the one ``loaded``, and those ``damaged``."""

    def __init__(self, folder: Path, keep: int, *, leads: bool = True) -> None:
        self._folder = folder
        self._keep = keep
        self._leads = leads  # of several processes only one writes and reads; the others are told
        self.fence = Fence(folder, leads=leads)
        self.last_step: int | None = None
        self.last_time: str | None = None
        self.damaged: list[str] = []
        self.loaded = ""

    def save(self, state: TrainingState, tensors: Mapping[str, torch.Tensor | Part]) -> Path:
        """Write a checkpoint, then remove the oldest beyond ``keep``; returns its folder. Every process calls it."""
        started = time.monotonic()
        target = self._folder / _name(state)
        if not self._leads:
            together(tensors.values())
            self.last_step = state.step
            return target
        with folder_aside(self._folder) as aside:
            write_tensors(aside / WEIGHTS, tensors)
            (aside / "state.json").write_text(state.model_dump_json(by_alias=True))
            self.fence.check()
            seal(aside, target)
        self._note(state, target)
        for path in self._paths()[self._keep :]:
            shutil.rmtree(path, ignore_errors=True)
        log.info("checkpoint %s written in %.1f s", target.name, time.monotonic() - started)
        return target

    def open(self) -> None:
        """Become the one process that writes here; what a killed one left half-written goes."""
        if not self._leads:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self.fence.take()
        remove_asides(self._folder)

    def load(self, digest: str) -> tuple[TrainingState, Mapping[str, torch.Tensor]] | None:
        """The newest checkpoint of this input that is whole, or None; the damaged ones are removed."""
        for path in self._paths() if self._leads else []:
            state = _read_state(path) if is_whole(path) else None
            if state is None:
                log.warning("checkpoint %s is damaged; passing over to the one before", path.name)
                self.damaged.append(path.name)
                shutil.rmtree(path, ignore_errors=True)
                continue
            if state.input_digest != digest:
                log.warning("checkpoint %s belongs to another input; it is not used", path.name)
                continue
            self._note(state, path)
            self.loaded = path.name
            return state, StoredTensors(path / WEIGHTS)
        return None

    def count_resume(self, state: TrainingState) -> int:
        """Remember that training goes on from here; returns how often it did, whatever became of the checkpoints."""
        if not self._leads:
            return 0  # it is told
        path = self._folder / "resumes.jsonl"
        before = path.read_text().splitlines() if path.is_file() else []
        lines = [*before, json.dumps({"step": state.step, "microbatch": state.microbatch})]
        write_atomic(path, "".join(line + "\n" for line in lines).encode())
        return len(lines)

    @property
    def found(self) -> Found:
        """What ``load`` found, for the processes that did not look."""
        return Found(last_step=self.last_step, last_time=self.last_time, damaged=self.damaged, loaded=self.loaded)

    def adopt(self, found: Found) -> None:
        """Know what another process found."""
        self.last_step, self.last_time = found.last_step, found.last_time
        self.damaged, self.loaded = found.damaged, found.loaded

    def _note(self, state: TrainingState, path: Path) -> None:
        self.last_step = state.step
        self.last_time = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _paths(self) -> list[Path]:
        """Newest first."""
        found = (path for path in self._folder.glob("step-*") if path.is_dir())
        return sorted(found, key=_position, reverse=True)


def _name(state: TrainingState) -> str:
    """``step-<n>``, or ``step-<n>.<m>`` with m packs of the next step done."""
    return f"step-{state.step}" + (f".{state.microbatch}" if state.microbatch else "")


def _position(path: Path) -> tuple[int, int]:
    step, _, microbatch = path.name.removeprefix("step-").partition(".")
    return (int(step) if step.isdigit() else -1, int(microbatch) if microbatch.isdigit() else 0)


def _read_state(path: Path) -> TrainingState | None:
    try:
        return TrainingState.model_validate_json((path / "state.json").read_bytes())
    except pydantic.ValidationError:
        return None
