"""What a decision asks to be done to children, as data. Never does it."""

from dataclasses import dataclass, field
from typing import Any

from tuneloop_core.stages import Stage


@dataclass(frozen=True)
class CreateStage:
    """Make the Job of a stage."""

    stage: Stage


@dataclass(frozen=True)
class DeleteJob:
    """Delete this very Job."""

    stage: Stage
    name: str
    uid: str


@dataclass(frozen=True)
class PatchJob:
    """Change ``spec`` fields of a Job that may change: suspend, backoffLimit."""

    stage: Stage
    name: str
    spec: dict[str, Any]


Action = CreateStage | DeleteJob | PatchJob


@dataclass(frozen=True)
class Note:
    """An Event to tell."""

    reason: str
    message: str
    warning: bool = field(default=False)
