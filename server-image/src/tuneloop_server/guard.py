"""The door: which caller may reach which path; everything else does not exist.

vLLM's own key check covers a prefix and leaves other paths open, so nothing of vLLM is reachable but what this table
names. Pure ASGI: no body is read, buffered or changed.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from tuneloop_core.serving import GuardConfig
from tuneloop_server.responses import send_error
from tuneloop_server.tokens import KeyFile


class Role(Enum):
    """What a subject may be, by the lists of guard.json."""

    INFERENCE = "inference"
    ADMIN = "admin"


OPEN: Final = frozenset({("GET", "/health")})

_BOTH: Final = frozenset(Role)
_INFERENCE: Final = frozenset({Role.INFERENCE})
_ADMIN: Final = frozenset({Role.ADMIN})

TABLE: Final[Mapping[tuple[str, str], frozenset[Role]]] = MappingProxyType(
    {
        ("GET", "/v1/models"): _INFERENCE,
        ("POST", "/v1/chat/completions"): _INFERENCE,
        ("POST", "/v1/completions"): _INFERENCE,
        ("POST", "/v1/embeddings"): _INFERENCE,
        ("POST", "/v1/score"): _INFERENCE,
        ("POST", "/classify"): _INFERENCE,
        ("GET", "/metrics"): _BOTH,
        ("GET", "/tuneloop/status"): _ADMIN,
        ("POST", "/tuneloop/adapters"): _ADMIN,
    }
)


class Verdict(Enum):
    """What the door says."""

    PASS = 200
    UNKNOWN_CALLER = 401
    NOT_YOURS = 403
    NOT_FOUND = 404


def judge(method: str, path: str, roles: frozenset[Role] | None) -> Verdict:
    """The whole policy. ``roles`` is None without a valid token, empty for a valid token of a stranger."""
    if (method, path) in OPEN:
        return Verdict.PASS
    allowed = TABLE.get((method, path))
    if allowed is None:
        return Verdict.NOT_FOUND
    if roles is None:
        return Verdict.UNKNOWN_CALLER
    return Verdict.PASS if roles & allowed else Verdict.NOT_YOURS


def roles_of(subject: str, config: GuardConfig) -> frozenset[Role]:
    """The roles that guard.json gives a subject."""
    named = {Role.INFERENCE: config.inference, Role.ADMIN: config.admin}
    return frozenset(role for role, subjects in named.items() if subject in subjects)


_MESSAGES: Final = {
    Verdict.UNKNOWN_CALLER: "A service-account token for servers of this namespace is needed. Clients use the gateway.",
    Verdict.NOT_YOURS: "This service account may not use this path.",
    Verdict.NOT_FOUND: "No such path.",
}


class Guard:
    """ASGI middleware around everything that the server answers."""

    def __init__(self, app: ASGIApp, keys: KeyFile) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge, then pass on untouched or answer."""
        if scope["type"] != "http":
            await _refuse(scope, send)
            return
        roles = self._roles(scope) if (scope["method"], scope["path"]) in TABLE else None
        verdict = judge(scope["method"], scope["path"], roles)
        if verdict is Verdict.PASS:
            await self._app(scope, receive, send)
            return
        headers = {"www-authenticate": "Bearer"} if verdict is Verdict.UNKNOWN_CALLER else None
        await send_error(send, verdict.value, _MESSAGES[verdict], headers)

    def _roles(self, scope: Scope) -> frozenset[Role] | None:
        keys, token = self._keys.current(), bearer(scope)
        subject = keys.subject(token) if keys and token else None
        return roles_of(subject, keys.config) if keys and subject else None


def bearer(scope: Scope) -> str | None:
    """The bearer token, if there is exactly one authorization header and it holds one."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    kind, _, token = values[0].decode("latin-1").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
