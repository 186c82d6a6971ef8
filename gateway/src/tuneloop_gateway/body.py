"""What the gateway reads and changes in a request's body: ``model``, ``stream`` and ``stream_options``.

The body is parsed and written anew, so the server gets exactly what was checked, whatever tricks the original played
with doubled keys. Pure. Never logs: a body is the user's.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from tuneloop_gateway import errors
from tuneloop_gateway.errors import ApiError

KINDS = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True)
class Asked:
    """A parsed body, and what of it matters here."""

    fields: dict[str, Any]
    model: str  # empty if missing
    stream: bool
    wants_usage: bool  # the client itself asked for the usage chunk


def parse(raw: bytes) -> Asked:
    """Parse and check a request body.

    Raises:
        ApiError: 400, with the field that is wrong.
    """
    fields = parse_object(raw)
    model = fields.get("model")
    stream = _boolean(fields, "stream")
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise ApiError(errors.bad_field("stream_options", "'stream_options' must be an object or left out."))
    wants = _boolean(options, "include_usage", "stream_options.") if options else False
    return Asked(fields, model if isinstance(model, str) else "", stream, wants)


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body must be.

    Raises:
        ApiError: 400, with where it breaks or what it is instead.
    """
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(errors.broken_json(f"{error.msg} at line {error.lineno} column {error.colno}")) from None
    if not isinstance(fields, dict):
        raise ApiError(errors.not_an_object(KINDS[type(fields)]))
    return fields


def _boolean(fields: dict[str, Any], name: str, prefix: str = "") -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        path = prefix + name
        raise ApiError(errors.bad_field(path, f"'{path}' must be true or false, found {_kind(value)}."))
    return bool(value)


def _kind(value: object) -> str:
    return KINDS.get(type(value), "an object")


def rewrite(asked: Asked, engine_name: str) -> bytes:
    """The body for the server: the engine's name of the model, and usage asked for in every stream.

    Raises:
        ApiError: 400 where the body is nested too deep to be written.
    """
    fields = asked.fields | {"model": engine_name}
    if asked.stream:
        fields["stream_options"] = (fields.get("stream_options") or {}) | {"include_usage": True}
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError:
        raise ApiError(errors.broken_json("it is nested too deep")) from None
