"""Which version answers a request while a new one takes a share of the traffic, and how feedback finds it again.

Stateless, so that all gateways agree and a restart changes nothing: the split is a hash of who asks, salted with the
version, and an answer's id carries the version's tag (the engine builds the id from the request id that we send, so no
chunk is touched; docs/adr/0054). Who asks is OpenAI's ``user``, else the conversation (its messages up to the first
one of the user, which all its turns begin with), else the request by itself. Pure; never keeps a request.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import orjson

from tuneloop_gateway.routes import Address, Namespace, Route

PARTS: Final = 10_000  # a weight of 1 % is 100 of them
TAG: Final = re.compile(r"-tl([0-9a-f]{8})(?![0-9a-f])")


@dataclass(frozen=True)
class Arm:
    """One version of one name."""

    deployment: str
    model: str
    engine_name: str
    revision: str


def choose(route: Route, fields: Mapping[str, Any], request: bytes) -> Route:
    """The route with the version that answers: the canary for its share of users, the stable one for all others.

    A canary without a ready pod takes nothing: its users are answered by the version that serves.
    """
    canary = route.canary
    if canary is None or not canary.weight or not canary.addresses or not canary.engine_name:
        return route
    salt = f"{route.deployment.namespace}/{route.model}/{canary.engine_name}/{canary.revision}".encode()
    if place(salt, identity(fields, request)) >= canary.weight * PARTS // 100:
        return route
    return replace(route, engine_name=canary.engine_name, revision=canary.revision, addresses=canary.addresses)


def identity(fields: Mapping[str, Any], request: bytes) -> bytes:
    """Who asks: the user, else the conversation, else this request."""
    user = fields.get("user")
    if isinstance(user, str) and user:
        return b"user:" + user.encode()
    opening = _opening(fields.get("messages"))
    return b"conversation:" + opening if opening else b"request:" + request


def _opening(messages: object) -> bytes:
    """The messages up to the user's first one, which every turn of a conversation repeats."""
    if not isinstance(messages, list):
        return b""
    for number, message in enumerate(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return orjson.dumps(messages[: number + 1])
    return b""


def place(salt: bytes, who: bytes) -> int:
    """A number below ``PARTS``, the same in every process, evenly spread; a share that grows keeps whom it had."""
    digest = blake2b(who, digest_size=8, key=blake2b(salt, digest_size=32).digest()).digest()
    return int.from_bytes(digest, "big") * PARTS >> 64


def tagged(identity_: bytes, route: Route) -> bytes:
    """The request id that the server is sent: the client's or ours, and the version's tag behind it."""
    arm = Arm(route.deployment.name, route.model, route.engine_name, route.revision)
    return b"%b-tl%b" % (identity_, tag(route.deployment.namespace, arm).encode())


@lru_cache(maxsize=4096)
def tag(namespace: str, arm: Arm) -> str:
    """Eight hexadecimal digits that stand for a version of a name."""
    text = "\0".join((namespace, arm.deployment, arm.model, arm.engine_name, arm.revision))
    return blake2b(text.encode(), digest_size=4).hexdigest()


def find(namespace: str, routes: Iterable[Route], response: str) -> Arm | None:
    """The version that gave an answer, by the answer's id; None if the id is not ours, or the version gone."""
    found = TAG.findall(response)
    if not found:
        return None
    return next((arm for arm in arms_of(routes) if tag(namespace, arm) == found[-1]), None)


def arms_of(routes: Iterable[Route]) -> Iterable[Arm]:
    """Every version that may have answered lately."""
    for route in routes:
        yield Arm(route.deployment.name, route.model, route.engine_name, "")
        if route.canary is not None:
            yield Arm(route.deployment.name, route.model, route.canary.engine_name, route.canary.revision)


def addresses(route: Route) -> tuple[Address, ...]:
    """Every pod that any version of a name may be sent to."""
    return tuple(dict.fromkeys((*route.addresses, *(route.canary.addresses if route.canary else ()))))


def versions(namespaces: Iterable[Namespace]) -> set[tuple[str, str, str, str]]:
    """(namespace, deployment, model, engine name) of all versions, for what is measured."""
    return {
        (route.deployment.namespace, arm.deployment, arm.model, arm.engine_name)
        for namespace in namespaces
        for route in namespace.models.values()
        for arm in arms_of([route])
    }
