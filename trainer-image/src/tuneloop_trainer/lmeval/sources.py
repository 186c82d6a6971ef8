"""The rows of ``evaluation.tasks``, brought to ``/work/tasks/NAME`` by the fetch stage: train asks nobody for them.

Names are settled here, before anything large is downloaded: one that neither lm-eval nor its source knows ends the
stage with those that are near. Nothing that was downloaded is run.
"""

import logging
import shutil
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from tuneloop_core.api.evaltasks import EvaluationTask, TaskSource
from tuneloop_core.data.files import READ, is_readable, matches
from tuneloop_core.stages import FetchInput, Reason

from tuneloop_trainer.claims import open_claim
from tuneloop_trainer.download import Downloader, S3Credentials
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import folder_aside, gib, seal, sealed_digest, store_full_told
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.hub import Hub
from tuneloop_trainer.lmeval import custom, known
from tuneloop_trainer.paths import Paths

log = logging.getLogger("tuneloop")

CARD = "README.md"  # tells the configurations of a hub's dataset


def fetch_tasks(stage_input: FetchInput, paths: Paths, guard: AddressGuard) -> None:
    """Bring the rows of every task; one that lies there whole is kept."""
    tasks = [EvaluationTask.model_validate(each) for each in stage_input.tasks]
    plain = {task.name: _settled(task) for task in tasks}
    for number, task in enumerate(tasks):
        if not sealed_digest(paths.task(task.name)):
            _Fetch(stage_input, paths, guard, task, f"task-{number}").run(plain[task.name])


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

    def __init__(
        self, stage_input: FetchInput, paths: Paths, guard: AddressGuard, task: EvaluationTask, purpose: str
    ) -> None:
        self.stage_input, self.paths, self.guard, self.task, self.purpose = stage_input, paths, guard, task, purpose

    def run(self, repository: str) -> None:
        """From the source, or from the repository that lm-eval names."""
        source, what = self.task.source, f"evaluation.tasks {self.task.name}"
        with folder_aside(self.paths.tasks) as aside, store_full_told(aside, what):
            if source is None:
                self._hub(repository, "", (), aside)
            else:
                self._bring(source, aside)
            uri = source.uri if source else f"hf://datasets/{repository}"
            if custom.file_of(aside, self.task.name) is None and known.find(self.task.name) is None:
                raise known.unknown(self.task.name, uri)
            digest = seal(aside, self.paths.task(self.task.name))
        log.info("%s: the rows of %s are there, %s", what, uri, digest)

    def _bring(self, source: TaskSource, aside: Path) -> None:
        if source.uri.startswith("pvc://"):
            self._claim(source, aside)
        elif source.uri.startswith("hf://"):
            org, name, *below = source.uri.removeprefix("hf://datasets/").split("/")
            self._hub(f"{org}/{name}", "/".join(below).rstrip("/"), source.files or (), aside)
        elif source.uri.startswith("s3://"):
            keys = (self.paths.secret(self.purpose, key) for key in ("accessKeyId", "secretAccessKey", "sessionToken"))
            self._downloader().s3(source.uri, source.endpoint, S3Credentials(*keys), aside)
        else:
            self._downloader().https(source.uri, self.paths.secret(self.purpose, "token"), aside)

    def _downloader(self) -> Downloader:
        return Downloader(self.guard, self.stage_input.max_bytes)

    def _claim(self, source: TaskSource, aside: Path) -> None:
        claim = open_claim(self.paths, self.stage_input.task_paths.get(self.purpose, ""), source.uri, self.purpose)
        if claim.place.is_file():
            claim.copy(claim.place, aside / claim.place.name)
            return
        there = claim.listing()
        for path in claim.files(there[name] for name in self._wanted(there, source.files or (), source.uri)):
            claim.copy(path, aside / path.relative_to(claim.place))

    def _hub(self, repository: str, below: str, patterns: Iterable[str], aside: Path) -> None:
        uri = f"hf://datasets/{repository}"
        hub = Hub(self.stage_input.hub_endpoint, self.paths.secret(self.purpose, "token"), self.guard)
        prefix = f"{below}/" if below else ""

        def choose(found: list[str]) -> list[str]:
            if below in found:
                return [below]
            inner = [path.removeprefix(prefix) for path in found if path.startswith(prefix)]
            return [prefix + path for path in self._wanted(inner, patterns, uri)]

        chosen = hub.resolve_chosen(repository, choose)
        if self.stage_input.max_bytes and chosen.bytes > self.stage_input.max_bytes:
            allowed = gib(self.stage_input.max_bytes)
            message = (
                f"{uri} has {gib(chosen.bytes)}; hub.maxBytes of this installation allows {allowed}. Name source.files."
            )
            raise StageError(Reason.DATASET_INVALID, message)
        hub.download(chosen, aside)
        if below and (aside / below).is_dir():
            _lift(aside, aside / below)

    def _wanted(self, paths: Iterable[str], patterns: Iterable[str], uri: str) -> list[str]:
        """Rows (those that fit the patterns, where there are any), the card, and the task itself."""
        there, wanted = list(paths), list(patterns)
        rows = [path for path in there if is_readable(PurePosixPath(path).name)]
        if wanted:
            rows = [path for path in rows if any(matches(path, pattern) for pattern in wanted)]
        if not rows:
            fitting = f" that fits source.files {', '.join(wanted)}" if wanted else ""
            seen = ", ".join(there[:5]) or "no files"
            told = f"{uri} has no file{fitting} (it has {seen}); what is read is {READ}."
            raise StageError(Reason.DATASET_NOT_FOUND, f"evaluation.tasks {self.task.name}: {told}")
        return rows + [path for path in there if path in (CARD, f"{self.task.name}.yaml")]


def _lift(root: Path, below: Path) -> None:
    """What lies in a folder of a repository, as if it were the whole."""
    with folder_aside(root.parent) as aside:
        shutil.copytree(below, aside, dirs_exist_ok=True)
        shutil.rmtree(root)
        aside.rename(root)
