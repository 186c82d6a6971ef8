"""The tasks that lm-eval brings: found in its files, never loaded here, so that nothing of theirs runs or is fetched.

Says what a name means before anything is downloaded: a task or a group of tasks, and the hub repository it is of.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.lmeval.names import folder_of, near

BUILDERS = frozenset({"json", "csv", "parquet", "text", "arrow"})  # of the datasets library: no repositories


@dataclass(frozen=True)
class Known:
    """A task or group of lm-eval's, and the index in which it and its members lie."""

    name: str
    index: dict[str, Any]
    repository: str  # of the hub, such as allenai/ai2_arc; empty where it has none

    @property
    def is_group(self) -> bool:
        """Whether it stands for several tasks."""
        return bool(self.index[self.name].kind.name == "GROUP")


def find(name: str) -> Known | None:
    """What lm-eval knows by this name, None where it knows nothing; raises ``DatasetInvalid`` for what cannot be asked
    here."""
    folder = folder_of(name)
    if folder is None:
        return None
    index = _index(name, folder)
    members = leaves(name, index)
    _require_askable(name, members)
    repositories = sorted({str(each.get("dataset_path", "")) for each in members.values()})
    if len(repositories) > 1:
        raise _refusal(
            name,
            f"is a group over several repositories ({', '.join(repositories[:5])}); list its tasks one by one, such as "
            f"{', '.join(sorted(members)[:3])}.",
        )
    repository = repositories[0] if repositories else ""
    return Known(name, index, "" if repository in BUILDERS else repository)


def unknown(name: str, source: str = "") -> StageError:
    """The error for a name that neither lm-eval nor the source knows."""
    alike = near(name)
    hint = f"it has {', '.join(alike)}" if alike else "its names are listed by lm_eval ls tasks"
    own = f", and {source} has no {name}.yaml" if source else "; a task of your own comes with a source that has it"
    return _refusal(name, f"is no task of lm-eval's{own}. {hint[0].upper()}{hint[1:]}.")


def leaves(name: str, index: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the tasks that a name stands for, by their own names."""
    entry = index[name]
    if entry.kind.name != "GROUP":
        return {name: dict(entry.cfg or {}, kind=entry.kind.name)}
    found: dict[str, dict[str, Any]] = {}
    for member in _members(entry):
        if member in index:
            for each in sorted(index[member].tags) if index[member].kind.name == "TAG" else [member]:
                found |= leaves(each, index)
    return found


def _index(name: str, folder: Path) -> dict[str, Any]:
    """lm-eval's index of the folders that a name and its members lie in."""
    from lm_eval.tasks._index import TaskIndex  # noqa: PLC0415 - slow to import

    folders = [folder]
    while True:
        index: dict[str, Any] = TaskIndex.build(folders)
        if name not in index:
            raise _refusal(name, "is listed by lm-eval, but its file does not parse.")
        missing = {folder_of(each) for each in _all_members(name, index) if each not in index} - {None, *folders}
        if not missing:
            return index
        folders += [each for each in missing if each is not None]


def _all_members(name: str, index: dict[str, Any]) -> set[str]:
    if name not in index or index[name].kind.name != "GROUP":
        return {name}
    found: set[str] = set()
    for member in _members(index[name]):
        found |= _all_members(member, index)
    return found


def _members(entry: Any) -> list[str]:
    """Names below a group; definitions within it have none that could be looked up."""
    listed = (entry.cfg or {}).get("task", [])
    named = (each if isinstance(each, str) else each.get("task") or each.get("group") for each in listed)
    return [each for each in named if isinstance(each, str)]


def _require_askable(name: str, members: dict[str, dict[str, Any]]) -> None:
    for member, config in members.items():
        if config["kind"] == "PY_TASK":
            raise _refusal(name, f"is a program that fetches its own rows ({member}), and pods here ask nobody.")
        if config.get("unsafe_code"):
            raise _refusal(name, f"runs code that the model wrote ({member}), and that is never run here.")
        if config.get("custom_dataset"):
            raise _refusal(name, f"makes its rows by a program of its own ({member}), and takes none from a source.")
        if config.get("doc_to_image") or config.get("doc_to_audio"):
            raise _refusal(name, f"shows pictures or sounds ({member}); models here read text.")


def _refusal(name: str, words: str) -> StageError:
    return StageError(Reason.DATASET_INVALID, f"evaluation.tasks {name}: {name} {words}")
