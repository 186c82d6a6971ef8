"""Reads a folder tree ``<root>/{models,datasets}/<org>/<name>/`` as repositories with commits and digests.

A repository's commit is a hash of its content, so equal content has an equal revision on every machine. Digests are
kept by path, size and time of change: content may be copied in while the mirror runs. Never follows a link
out of the tree.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

RepoType = Literal["models", "datasets"]
POLICY_FILE = ".mirror.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
CHUNK = 1 << 20  # bytes


class Policy(BaseModel):
    """Who may read a repository (its ``.mirror.json``); ``tokens`` are those that may, or that accepted the licence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    private: bool = False
    gated: bool = False
    tokens: frozenset[str] = frozenset()


class KnownTokens(BaseModel):
    """``.mirror.json`` at the root: tokens of users that exist, besides those that repositories name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RepoFile:
    """One file: ``path`` relative to the repository, ``size`` in bytes, ``digest`` the hex SHA-256 of its content."""

    path: str
    size: int
    digest: str
    location: Path


@dataclass(frozen=True)
class Repo:
    """A repository at its only revision."""

    type: RepoType
    id: str  # org/name
    files: tuple[RepoFile, ...]
    commit: str  # 40 hex digits
    policy: Policy

    def file(self, path: str) -> RepoFile | None:
        """Return the file at this path, if there is one."""
        return next((file for file in self.files if file.path == path), None)

    def has_revision(self, revision: str) -> bool:
        """Whether the name is the main branch or the commit itself."""
        return revision in ("main", self.commit)


@lru_cache(maxsize=4096)
def _digest(location: Path, size: int, changed_ns: int) -> str:
    """Hash a file; ``size`` and ``changed_ns`` make a changed file a new question to the cache."""
    digest = hashlib.sha256()
    with location.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_file(folder: Path, location: Path) -> RepoFile:
    stat = location.stat()
    digest = _digest(location, stat.st_size, stat.st_mtime_ns)
    return RepoFile(location.relative_to(folder).as_posix(), stat.st_size, digest, location)


def _is_content(folder: Path, location: Path) -> bool:
    hidden = any(part.startswith(".") for part in location.relative_to(folder).parts)
    return location.is_file() and not location.is_symlink() and not hidden


def commit_of(files: tuple[RepoFile, ...]) -> str:
    """Return 40 hex digits over the sorted paths and digests, the shape of a git commit."""
    lines = "".join(f"{file.path} {file.digest}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:40]


def read_policy(folder: Path) -> Policy:
    """Read a repository's ``.mirror.json``; without one it is public."""
    path = folder / POLICY_FILE
    return Policy.model_validate(json.loads(path.read_text())) if path.exists() else Policy()


def read_folder(kind: RepoType, repo_id: str, folder: Path) -> Repo:
    """Read one folder as a repository."""
    locations = sorted(path for path in folder.rglob("*") if _is_content(folder, path))
    files = tuple(_read_file(folder, path) for path in locations)
    return Repo(kind, repo_id, files, commit_of(files), read_policy(folder))


def find_repo(root: Path, kind: RepoType, org: str, name: str) -> Repo | None:
    """Return the repository, or None when there is none or the name is not one."""
    if not NAME.fullmatch(org) or not NAME.fullmatch(name):
        return None
    folder = root / kind / org / name
    return read_folder(kind, f"{org}/{name}", folder) if folder.is_dir() else None


def known_tokens(root: Path) -> frozenset[str]:
    """Every token that belongs to somebody."""
    path = root / POLICY_FILE
    listed = KnownTokens.model_validate(json.loads(path.read_text())).tokens if path.exists() else frozenset()
    of_repos = (read_policy(folder).tokens for kind in ("models", "datasets") for folder in root.glob(f"{kind}/*/*"))
    return listed.union(*of_repos)
