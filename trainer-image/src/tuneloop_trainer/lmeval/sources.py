"""The rows of ``evaluation.tasks``, brought to ``/work/tasks/NAME`` by the fetch stage: train asks nobody for them.

Names are settled here, before anything large is downloaded: one that neither lm-eval nor its source knows ends the
stage with those that are near. Nothing that was downloaded is run.
"""

import logging
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from tuneloop_core.api.evaltasks import EvaluationTask, TaskSource
from tuneloop_core.data.files import READ, is_readable, matches
from tuneloop_core.stages import FetchInput, Reason
from tuneloop_core.uris import shown

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import folder_aside, seal, sealed_digest, store_full_told
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.lmeval import custom, known
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.rowfiles import Access, Address, RowFiles, hub_rows, open_rows

log = logging.getLogger("tuneloop")

CARD = "README.md"  # tells the configurations of a hub's dataset


def fetch_tasks(stage_input: FetchInput, paths: Paths, guard: AddressGuard) -> None:
    """Bring the rows of every task; one that lies there whole is kept."""
    tasks = [EvaluationTask.model_validate(each) for each in stage_input.tasks]
    plain = {task.name: _settled(task) for task in tasks}
    for number, task in enumerate(tasks):
        if not sealed_digest(paths.task(task.name)):
            _Fetch(Access(stage_input, paths, guard), task, f"task-{number}").run(plain[task.name])


def tasks_hold(paths: Paths) -> bool:
    """Whether all that was brought still lies there."""
    return all(sealed_digest(folder) for folder in paths.tasks.glob("[!.]*"))


def task_sources(tasks: Sequence[EvaluationTask], paths: Paths) -> dict[str, Any]:
    """For the manifest: lm-eval's version and the digest of each task's rows; nothing where there are no tasks."""
    if not tasks:
        return {}
    return {
        "lmEval": version("lm-eval"),
        "taskRows": {each.name: sealed_digest(paths.task(each.name)) for each in tasks},
    }


def _settled(task: EvaluationTask) -> str:
    """The hub repository that stands for a missing source; raises for a name that cannot mean anything."""
    found = known.find(task.name)
    if task.source is not None:
        return ""
    if found is None:
        raise known.unknown(task.name)
    if not found.repository:
        message = f"evaluation.tasks {task.name}: lm-eval names no repository of the hub for it; name a source."
        raise StageError(Reason.DATASET_INVALID, message)
    return found.repository


class _Fetch:
    """One task's rows."""

    def __init__(self, access: Access, task: EvaluationTask, purpose: str) -> None:
        self.access, self.task, self.purpose = access, task, purpose

    @property
    def _field(self) -> str:
        return f"evaluation.tasks {self.task.name} source.uri"

    def run(self, repository: str) -> None:
        """From the source, or from the repository that lm-eval names."""
        source, what = self.task.source, f"evaluation.tasks {self.task.name}"
        uri = shown(source.uri) if source else f"hf://datasets/{repository}"
        with folder_aside(self.access.paths.tasks) as aside, store_full_told(aside, what):
            if source is None:
                rows = hub_rows(Address(uri, "", self.purpose, self._field), repository, "", self.access)
                rows.bring(self._wanted(rows, ()), aside, self.access.max_bytes)
            else:
                self._bring(source, aside)
            if custom.file_of(aside, self.task.name) is None and known.find(self.task.name) is None:
                raise known.unknown(self.task.name, uri)
            digest = seal(aside, self.access.paths.task(self.task.name))
        log.info("%s: the rows of %s are there, %s", what, uri, digest)

    def _bring(self, source: TaskSource, aside: Path) -> None:
        mount = self.access.stage_input.task_paths.get(self.purpose, "")
        rows = open_rows(Address(source.uri, source.endpoint, self.purpose, self._field, mount), self.access)
        names = list(rows.sizes) if rows.single else self._wanted(rows, source.files or ())
        rows.bring(names, aside, self.access.max_bytes)
        below = source.uri.removeprefix("hf://datasets/").rstrip("/").split("/")[2:]
        if source.uri.startswith("hf://") and below and (inner := aside.joinpath(*below)).is_dir():
            _lift(aside, inner)

    def _wanted(self, rows: RowFiles, patterns: Sequence[str]) -> list[str]:
        """Rows (those that fit the patterns, where there are any), the card, and the task itself."""
        there = [path for path in rows.sizes if is_readable(PurePosixPath(path).name)]
        wanted = [path for path in there if not patterns or any(matches(path, pattern) for pattern in patterns)]
        if not wanted:
            fitting = f" that fits source.files {', '.join(patterns)}" if patterns else ""
            told = f"{rows.uri} has no file{fitting} (it has {rows.shown}); what is read is {READ}."
            raise StageError(Reason.DATASET_NOT_FOUND, f"evaluation.tasks {self.task.name}: {told}")
        return wanted + [path for path in rows.sizes if path in (CARD, f"{self.task.name}.yaml")]


def _lift(root: Path, below: Path) -> None:
    """What lies in a folder of a repository, as if it were the whole."""
    with folder_aside(root.parent) as aside:
        shutil.copytree(below, aside, dirs_exist_ok=True)
        shutil.rmtree(root)
        aside.rename(root)
