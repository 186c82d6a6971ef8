"""The JSON that the hub answers with, from repositories, as ``huggingface_hub.hf_api`` parses it. Pure."""

from typing import Any

from tuneloop_demo.mirror.repos import Repo, RepoFile

LFS_BYTES = 10_000_000  # the hub stores larger files in LFS; clients read the SHA-256 from there
POINTER_BYTES = 134


def _lfs(file: RepoFile) -> dict[str, Any]:
    return {"sha256": file.digest, "size": file.size, "pointerSize": POINTER_BYTES}


def _sibling(file: RepoFile, *, blobs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": file.path}
    if blobs:
        entry |= {"size": file.size, "blobId": file.digest[:40]}
    if blobs and file.size >= LFS_BYTES:
        entry["lfs"] = _lfs(file)
    return entry


def repo_info(repo: Repo, *, blobs: bool) -> dict[str, Any]:
    """``GET /api/{models,datasets}/{id}``; ``blobs`` adds sizes and digests."""
    return {
        "_id": repo.commit[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.partition("/")[0],
        "sha": repo.commit,
        "private": repo.policy.private,
        "gated": "manual" if repo.policy.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [_sibling(file, blobs=blobs) for file in repo.files],
    }


def _tree_file(file: RepoFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": file.path, "size": file.size, "oid": file.digest[:40]}
    if file.size >= LFS_BYTES:
        entry["lfs"] = {"oid": file.digest, "size": file.size, "pointerSize": POINTER_BYTES}
    return entry


def _folders(paths: list[str]) -> list[str]:
    found = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 1)}
    return sorted(found)


def tree(repo: Repo, path: str, *, recursive: bool) -> list[dict[str, Any]] | None:
    """``GET /api/.../tree/{revision}/{path}``: entries below a folder; None when there is no such folder."""
    prefix = f"{path}/" if path else ""
    files = [file for file in repo.files if file.path.startswith(prefix)]
    if path and not files:
        return None
    folders = [name for name in _folders([file.path for file in files]) if name.startswith(prefix)]
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": name, "size": 0, "oid": repo.commit} for name in folders
    ]
    entries += [_tree_file(file) for file in files]
    return entries if recursive else [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
