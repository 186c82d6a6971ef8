"""Checkpoints: everything that training needs to go on, in folders that are whole or not there.

A checkpoint is a safetensors file (adapter, optimizer, gradients summed so far) and a JSON file (position, counts,
curve), sealed by a digest. One that does not match its digest is passed over for the one before. No pickle is written
or read.
"""

import logging
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import pydantic
import torch
from safetensors.torch import load_file, save_file
from tuneloop_core.stages import Wire

from tuneloop_trainer.files import folder_aside, is_whole, seal

log = logging.getLogger("tuneloop")


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

    @property
    def position(self) -> tuple[int, int]:
        """Order of checkpoints."""
        return self.step, self.microbatch


class Checkpoints:
    """The checkpoints of one job, newest kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self.last_step: int | None = None
        self.last_time: str | None = None

    def save(self, state: TrainingState, tensors: dict[str, torch.Tensor]) -> Path:
        """Write a checkpoint, then remove the oldest beyond ``keep``; returns its folder."""
        started = time.monotonic()
        target = self._folder / _name(state)
        with folder_aside(self._folder) as aside:
            save_file({name: tensor.cpu() for name, tensor in tensors.items()}, aside / "state.safetensors")
            (aside / "state.json").write_text(state.model_dump_json(by_alias=True))
            seal(aside, target)
        self._note(state, target)
        for path in self._paths()[self._keep :]:
            shutil.rmtree(path, ignore_errors=True)
        log.info("checkpoint %s written in %.1f s", target.name, time.monotonic() - started)
        return target

    def load(self, input_digest: str) -> tuple[TrainingState, dict[str, torch.Tensor]] | None:
        """The newest checkpoint of this input that is whole, or None."""
        for path in self._paths():
            if not is_whole(path):
                log.warning("checkpoint %s is damaged; passing over to the one before", path.name)
                shutil.rmtree(path, ignore_errors=True)
                continue
            state = _read_state(path)
            if state is None or state.input_digest != input_digest:
                log.info("checkpoint %s belongs to another input; it is not used", path.name)
                continue
            self._note(state, path)
            return state, load_file(path / "state.safetensors")
        return None

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
