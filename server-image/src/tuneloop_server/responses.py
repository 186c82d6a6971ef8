"""Small answers of our own, in OpenAI's error shape where they are errors. Pure ASGI, constant size."""

import json
from typing import Any

from starlette.types import Send

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


async def send_json(send: Send, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    """One complete JSON response."""
    await send_bytes(send, status, json.dumps(body).encode(), "application/json", headers)


async def send_error(send: Send, status: int, message: str, headers: dict[str, str] | None = None) -> None:
    """An error as OpenAI's clients expect it."""
    error = {"message": message, "type": _TYPES.get(status, "server_error"), "param": None, "code": status}
    await send_json(send, status, {"error": error}, headers)


async def send_bytes(send: Send, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
    """One complete response."""
    fields = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
