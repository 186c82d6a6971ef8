"""Where a stage finds its mounts. In a pod they lie at the root; tests put the same tree elsewhere."""

import os
from dataclasses import dataclass
from pathlib import Path

from tuneloop_core.constants import TERMINATION_LOG
from tuneloop_core.stages import Stage

ROOT_ENV = "TUNELOOP_ROOT"


@dataclass(frozen=True)
class Paths:
    """The mounts of docs/contracts.md below one root."""

    root: Path

    @classmethod
    def from_environment(cls) -> "Paths":
        """The root of a pod is ``/``; TUNELOOP_ROOT is for running stages outside one."""
        return cls(Path(os.environ.get(ROOT_ENV, "/")))

    @property
    def models(self) -> Path:
        """Fetched models, a cache shared by the namespace."""
        return self.root / "store/models"

    @property
    def datasets(self) -> Path:
        """Fetched datasets, a folder for each digest."""
        return self.root / "store/datasets"

    @property
    def store(self) -> Path:
        """Where the folders of the store lie that a stage sees whole."""
        return self.root / "store"

    @property
    def all_work(self) -> Path:
        """The work folders of the namespace; fetch alone sees them."""
        return self.root / "store/work"

    @property
    def tokens(self) -> Path:
        """Checked datasets, kept for the next job on the same data; not there where none are kept."""
        return self.root / "store/tokens"

    @property
    def artifacts(self) -> Path:
        """Published artifacts, a folder for each digest."""
        return self.root / "store/artifacts"

    @property
    def model(self) -> Path:
        """The one model of this job, read-only."""
        return self.root / "model"

    @property
    def dataset(self) -> Path:
        """The one dataset of this job, read-only."""
        return self.root / "dataset"

    @property
    def work(self) -> Path:
        """This job's work folder."""
        return self.root / "work"

    @property
    def data(self) -> Path:
        """Normalised rows and their tokens."""
        return self.work / "data"

    @property
    def tasks(self) -> Path:
        """The rows of ``evaluation.tasks``, a folder for each."""
        return self.work / "tasks"

    def task(self, name: str) -> Path:
        """The rows of one task, and the task itself where its source brings it."""
        return self.tasks / name

    def secret(self, which: str, key: str) -> str:
        """A key of a mounted Secret, or an empty string where it is not there."""
        path = self.root / "secrets" / which / key
        return path.read_text().strip() if path.is_file() else ""

    def claim(self, which: str) -> Path:
        """A user's claim, mounted for ``pvc://``."""
        return self.root / "claims" / which

    def result(self, stage: Stage) -> Path:
        """The result file of a stage."""
        return self.work / stage / "result.json"

    @property
    def termination_log(self) -> Path:
        """Where the kubelet reads the pod's last words."""
        return self.root / TERMINATION_LOG.lstrip("/")
