"""The mirror's HTTP side: routes to pages, refusals to status codes and headers.

Every request reads the tree anew (digests are cached), so content that is copied in is served at once. Files are found
by name in the repository's list and never by joining a client's path. Never logs a token.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn, get_args

from aiohttp import web

from tuneloop_demo.mirror import pages
from tuneloop_demo.mirror.access import (
    BAD_CREDENTIALS,
    FILE_NOT_FOUND,
    Refusal,
    bearer_token,
    check_download,
    check_repo,
    check_revision,
)
from tuneloop_demo.mirror.repos import Repo, RepoType, find_repo, known_tokens

ROOT = web.AppKey("root", Path)
REPO = "{org}/{name}"


class RefusedError(Exception):
    """Carries a refusal, and the commit where one is known, to the middleware."""

    def __init__(self, refusal: Refusal, commit: str = "") -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.commit = commit


def refuse(refusal: Refusal | None, commit: str = "") -> None:
    """Raise when the answer is no."""
    if refusal is not None:
        _raise(refusal, commit)


def _raise(refusal: Refusal, commit: str) -> NoReturn:
    raise RefusedError(refusal, commit)


@web.middleware
async def say_no_like_the_hub(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn a refusal into the hub's status, headers and body."""
    try:
        return await handler(request)
    except RefusedError as error:
        headers = {"X-Error-Message": error.refusal.message}
        if error.refusal.code:
            headers["X-Error-Code"] = error.refusal.code
        if error.commit:
            headers["X-Repo-Commit"] = error.commit
        return web.json_response({"error": error.refusal.message}, status=error.refusal.status, headers=headers)


def _token(request: web.Request) -> str | None:
    return bearer_token(request.headers.get("Authorization"))


async def _repo(request: web.Request, kind: RepoType) -> Repo:
    """Find the repository of the request, at the revision it names, or raise the refusal."""
    root, match = request.app[ROOT], request.match_info
    repo = await asyncio.to_thread(find_repo, root, kind, match["org"], match["name"])
    refuse(check_repo(repo, _token(request), await asyncio.to_thread(known_tokens, root)))
    assert repo is not None
    refuse(check_revision(repo, match.get("revision", "main")))
    return repo


def info_handler(kind: RepoType) -> Callable[[web.Request], Awaitable[web.Response]]:
    """``/api/{kind}/{id}[/revision/{revision}]``."""

    async def handle(request: web.Request) -> web.Response:
        repo = await _repo(request, kind)
        return web.json_response(pages.repo_info(repo, blobs="blobs" in request.query))

    return handle


def tree_handler(kind: RepoType) -> Callable[[web.Request], Awaitable[web.Response]]:
    """``/api/{kind}/{id}/tree/{revision}[/{path}]``."""

    async def handle(request: web.Request) -> web.Response:
        repo = await _repo(request, kind)
        path = request.match_info.get("path", "").strip("/")
        entries = pages.tree(repo, path, recursive=request.query.get("recursive", "").lower() in ("1", "true"))
        if entries is None:
            raise RefusedError(FILE_NOT_FOUND, repo.commit)
        return web.json_response(entries)

    return handle


def resolve_handler(kind: RepoType) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """``/[datasets/]{id}/resolve/{revision}/{path}``: the file, whole or a range of it; HEAD for its facts."""

    async def handle(request: web.Request) -> web.StreamResponse:
        repo = await _repo(request, kind)
        refuse(check_download(repo, _token(request)), repo.commit)
        file = repo.file(request.match_info["path"])
        if file is None:
            raise RefusedError(FILE_NOT_FOUND, repo.commit)
        headers = {
            "X-Repo-Commit": repo.commit,
            "X-Linked-Etag": f'"{file.digest}"',  # by content; aiohttp's own ETag is by time of change
            "X-Linked-Size": str(file.size),
        }
        return web.FileResponse(file.location, headers=headers, chunk_size=1 << 20)

    return handle


async def whoami(request: web.Request) -> web.Response:
    """``/api/whoami-v2``: is the token somebody's?"""
    if _token(request) not in known_tokens(request.app[ROOT]):
        raise RefusedError(BAD_CREDENTIALS)
    return web.json_response({"type": "user", "name": "mirror-user", "auth": {"type": "access_token"}})


async def healthz(_: web.Request) -> web.Response:
    """Answer a probe."""
    return web.Response(text="ok")


def create_app(root: Path) -> web.Application:
    """Build the application that serves the tree below ``root``."""
    app = web.Application(middlewares=[say_no_like_the_hub])
    app[ROOT] = root
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/api/whoami-v2", whoami)
    for kind in get_args(RepoType):
        app.router.add_get(f"/api/{kind}/{REPO}", info_handler(kind))
        app.router.add_get(f"/api/{kind}/{REPO}/revision/{{revision}}", info_handler(kind))
        app.router.add_get(f"/api/{kind}/{REPO}/tree/{{revision}}", tree_handler(kind))
        app.router.add_get(f"/api/{kind}/{REPO}/tree/{{revision}}/{{path:.*}}", tree_handler(kind))
    app.router.add_get(f"/datasets/{REPO}/resolve/{{revision}}/{{path:.+}}", resolve_handler("datasets"))
    app.router.add_get(f"/{REPO}/resolve/{{revision}}/{{path:.+}}", resolve_handler("models"))
    return app
