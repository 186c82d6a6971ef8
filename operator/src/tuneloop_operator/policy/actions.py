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
    """Delete this very Job; with ``foreground`` it is there, and its name taken, until its pods have ended."""

    stage: Stage
    name: str
    uid: str
    foreground: bool = False


@dataclass(frozen=True)
class PatchJob:
    """Change ``spec`` fields of a Job that may change (suspend, backoffLimit), or labels (None removes one)."""

    stage: Stage
    name: str
    spec: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str | None] = field(default_factory=dict)


Action = CreateStage | DeleteJob | PatchJob


@dataclass(frozen=True)
class Note:
    """An Event to tell."""

    reason: str
    message: str
    warning: bool = field(default=False)
