"""``POST /NAMESPACE/v1/feedback``: what a user thought of an answer, counted for the version that gave it.

Nothing is stored but two counts a version. Never logs what it was sent.
"""

from collections.abc import Sequence
from typing import Any, Final

import orjson

from tuneloop_gateway import arms, errors
from tuneloop_gateway.arms import Arm
from tuneloop_gateway.body import parse_object
from tuneloop_gateway.errors import ApiError, Reply
from tuneloop_gateway.routes import Route

GOOD: Final = 0.5
MAX_ID: Final = 256


def parse(raw: bytes) -> tuple[str, float]:
    """The answer's id and its score.

    Raises:
        ApiError: 400, with the field that is wrong.
    """
    fields = parse_object(raw)
    return _identity(fields), _score(fields.get("score"))


def _identity(fields: dict[str, Any]) -> str:
    found = fields.get("id")
    if not isinstance(found, str) or not 0 < len(found) <= MAX_ID:
        raise ApiError(errors.bad_field("id", "'id' must be the id of an answer, such as 'chatcmpl-...'."))
    return found


def _score(value: object) -> float:
    if isinstance(value, (bool, int, float)) and 0 <= value <= 1:
        return float(value)
    raise ApiError(errors.bad_field("score", "'score' must be true, false or a number from 0 (bad) to 1 (good)."))


def arm_of(namespace: str, routes: Sequence[Route], response: str) -> Arm:
    """The version that gave the answer.

    Raises:
        ApiError: 404 where the id is not of a version that takes traffic now, or not for this key.
    """
    arm = arms.find(namespace, routes, response)
    if arm is None:
        raise ApiError(errors.unknown_response())
    return arm


def reply(response: str, arm: Arm, score: float) -> Reply:
    """200: what was counted."""
    found = {"object": "feedback", "id": response, "model": arm.model, "score": score, "version": arm.engine_name}
    return Reply(200, orjson.dumps(found))
