"""Decides who may read what, and how the hub says no: status, ``X-Error-Code`` and words.

Pure. The codes are those that ``huggingface_hub.utils.hf_raise_for_status`` tells apart. Unlike the public hub, a
repository that does not exist is 404 also for the anonymous, so that a missing model and a missing token can be told
apart. Never names a token.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from tuneloop_demo.mirror.repos import Repo


@dataclass(frozen=True)
class Refusal:
    """An answer that is no: HTTP status, the hub's error code (may be empty) and the message."""

    status: int
    code: str
    message: str


BAD_CREDENTIALS = Refusal(401, "", "Invalid credentials in Authorization header")
FILE_NOT_FOUND = Refusal(404, "EntryNotFound", "Entry not found")


def bearer_token(header: str | None) -> str | None:
    """Return the token of an ``Authorization`` header, or None without one."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def check_repo(repo: Repo | None, token: str | None, known: AbstractSet[str]) -> Refusal | None:
    """May this token see that the repository exists? A known token without rights on a private one is refused."""
    if token is not None and token not in known:
        return BAD_CREDENTIALS
    if repo is None:
        return Refusal(404, "RepoNotFound", "Repository not found")
    if not repo.policy.private or token in repo.policy.tokens:
        return None
    if token is None:
        return Refusal(401, "", "Invalid username or password.")  # no code: it is there, which a 404 would deny
    return Refusal(403, "", "This token may not read this repository.")


def check_download(repo: Repo, token: str | None) -> Refusal | None:
    """May this token read files? Metadata of a gated repository is public, its files are not."""
    if not repo.policy.gated or token in repo.policy.tokens:
        return None
    if token is None:
        return Refusal(401, "GatedRepo", f"Access to {repo.id} is restricted. You must be authenticated to access it.")
    return Refusal(403, "GatedRepo", f"Access to {repo.id} is restricted: you have not accepted its licence.")


def check_revision(repo: Repo, revision: str) -> Refusal | None:
    """Is there such a revision?"""
    if repo.has_revision(revision):
        return None
    return Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
