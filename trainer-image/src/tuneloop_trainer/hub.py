"""``hf://`` models and datasets, through huggingface_hub and the guarded client.

Resolves a revision to a commit, decides which files are wanted, and turns the hub's answers into reasons. Names URIs
in messages, never a token.
"""

import fnmatch
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import hf_request_event_hook
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.guard import AddressGuard, guarded_client

log = logging.getLogger("tuneloop")

# Files at a repository's root that a text model needs; nothing that is a program or a pickle.
MODEL_FILES = (
    "*.safetensors",
    "*.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "merges.txt",
    "*.jinja",
    "LICENSE*",
)
SKIPPED_MODEL_FILES = ("consolidated*", "training_args*", "trainer_state.json", "adapter_*")

T = TypeVar("T")


@dataclass(frozen=True)
class Repository:
    """A repository at a commit, and the files wanted from it with their sizes in bytes."""

    kind: str  # model | dataset
    name: str  # org/name
    commit: str
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        """Size of the wanted files as the hub gives it."""
        return sum(self.files.values())


class Hub:
    """One hub with one token."""

    def __init__(self, endpoint: str, token: str, guard: AddressGuard) -> None:
        set_client_factory(lambda: guarded_client(guard, hooks=[hf_request_event_hook]))
        self._token = token
        self._api = HfApi(endpoint=endpoint or None, token=token or False)

    @property
    def endpoint(self) -> str:
        """Where the hub is."""
        return self._api.endpoint

    def resolve_model(self, name: str, revision: str) -> Repository:
        """The commit of a revision and the model files of it."""
        info = self._ask("model", name, revision, lambda: self._info(self._api.model_info, name, revision))
        found = _sizes(info)
        files = {path: size for path, size in found.items() if _is_model_file(path)}
        if not any(path.endswith(".safetensors") for path in files):
            others = [path for path in found if path.endswith((".bin", ".pt", ".pth", ".gguf", ".h5"))][:3]
            has = f" (it has {', '.join(others)})" if others else ""
            raise StageError(
                Reason.MODEL_UNSUPPORTED,
                f"hf://{name} has no .safetensors weights{has}; other formats can run code when loaded. Take a "
                "repository with safetensors, or convert it.",
            )
        return Repository("model", name, str(info.sha), files)

    def resolve_files(self, name: str, revision: str, wanted: Sequence[str]) -> Repository:
        """The commit of a revision of a model repository, and those of the wanted files that it has."""
        info = self._ask("model", name, revision, lambda: self._info(self._api.model_info, name, revision))
        found = _sizes(info)
        return Repository("model", name, str(info.sha), {path: found[path] for path in wanted if path in found})

    def resolve_dataset(self, name: str) -> Repository:
        """The newest commit of a dataset and all of its files."""
        info = self._ask("dataset", name, "main", lambda: self._info(self._api.dataset_info, name, "main"))
        return Repository("dataset", name, str(info.sha), _sizes(info))

    def download(self, repository: Repository, folder: Path) -> None:
        """Put the wanted files into ``folder``, each verified by the hub client against size and digest."""
        for path, size in repository.files.items():
            log.info("fetching %s (%.1f MiB)", path, size / 2**20)
            self._ask(
                repository.kind, repository.name, repository.commit, partial(self._file, repository, path, folder)
            )
        shutil.rmtree(folder / ".cache", ignore_errors=True)

    def upload_model(self, name: str, folder: Path, message: str) -> str:
        """Put a folder into a model repository as one commit; returns the commit. Raises the hub client's errors."""
        self._api.create_repo(name, private=True, exist_ok=True)
        return str(self._api.upload_folder(repo_id=name, folder_path=folder, commit_message=message).oid)

    def _file(self, repository: Repository, path: str, folder: Path) -> str:
        return self._api.hf_hub_download(
            repository.name, path, repo_type=repository.kind, revision=repository.commit, local_dir=folder
        )

    def _info(self, method: Callable[..., Any], name: str, revision: str) -> Any:
        return method(name, revision=revision, files_metadata=True, timeout=30)

    def _ask(self, kind: str, name: str, revision: str, question: Callable[[], T]) -> T:
        uri = f"hf://{'datasets/' if kind == 'dataset' else ''}{name}"
        try:
            return question()
        except LocalEntryNotFoundError as error:  # hub client's way to say that it could not connect
            raise self._unavailable(uri, error) from error
        except (HfHubHTTPError, HFValidationError) as error:
            raise self._refusal(kind, uri, revision, error) from error
        except (httpx2.TransportError, EntryNotFoundError) as error:
            raise self._unavailable(uri, error) from error

    def _refusal(self, kind: str, uri: str, revision: str, error: Exception) -> StageError:
        missing = Reason.MODEL_NOT_FOUND if kind == "model" else Reason.DATASET_NOT_FOUND
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if isinstance(error, GatedRepoError):
            return StageError(
                Reason.GATED_MODEL_NOT_ACCEPTED,
                f"{uri} is gated and its licence was not accepted by {self._who()}. Accept it on the hub's page of the "
                "repository, then nothing more is to be done here.",
            )
        if isinstance(error, RevisionNotFoundError):
            return StageError(
                Reason.REVISION_NOT_FOUND,
                f"{uri} exists on {self.endpoint} but has no branch, tag or commit {revision}.",
            )
        if status in (401, 403) and not _says_not_found(error):
            return StageError(Reason.ACCESS_DENIED, self._denied(uri, status))
        if isinstance(error, RepositoryNotFoundError | HFValidationError) or status == 404:
            return StageError(
                missing, f"{uri} does not exist on {self.endpoint}{self._or_hidden()}. Check the spelling of ORG/NAME."
            )
        return self._unavailable(uri, error)

    def _denied(self, uri: str, status: int) -> str:
        if self._token:
            return (
                f"{self.endpoint} refused {uri} ({status}): the token in credentialsSecret (key 'token') is wrong, "
                "expired or may not read it."
            )
        return (
            f"{self.endpoint} refused {uri} ({status}): it is private or does not exist, and no token was given. "
            "Name a Secret with the key 'token' in credentialsSecret."
        )

    def _unavailable(self, uri: str, error: Exception) -> StageError:
        status = getattr(getattr(error, "response", None), "status_code", "")
        cause = f"status {status}" if status else f"{type(error.__cause__ or error).__name__}"
        return StageError(
            Reason.HUB_UNAVAILABLE, f"{self.endpoint} did not answer for {uri} ({cause}); it will be tried again."
        )

    def _who(self) -> str:
        return (
            "the owner of the token" if self._token else "anyone: no token was given (credentialsSecret, key 'token')"
        )

    def _or_hidden(self) -> str:
        return ", or the token may not see it" if self._token else ""


def check_config(folder: Path, uri: str) -> None:
    """Refuse models that would run code of their own; whether transformers knows them is checked later."""
    try:
        config = json.loads((folder / "config.json").read_text())
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise StageError(Reason.MODEL_UNSUPPORTED, f"{uri} has no config.json with a model_type.") from None
    if config.get("auto_map") or any(key.startswith("_attn_implementation") for key in config):
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            f"{uri} ({model_type}) brings code of its own (auto_map in config.json), and code from a repository is "
            "never run. Take a model whose architecture transformers knows.",
        )


def is_wanted(path: str) -> bool:
    """Whether a file at the root of a model folder is one that a text model needs."""
    return _is_model_file(path)


def _says_not_found(error: Exception) -> bool:
    response = getattr(error, "response", None)
    return response is not None and response.headers.get("X-Error-Code") == "RepoNotFound"


def _sizes(info: Any) -> dict[str, int]:
    return {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}


def _is_model_file(path: str) -> bool:
    if "/" in path or _matches(path, SKIPPED_MODEL_FILES):
        return False
    return _matches(path, MODEL_FILES)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
